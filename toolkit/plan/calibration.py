"""What finished runs have taught: measured step times beside the work that was planned, and rates fitted to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.cache import cache_dir
from toolkit.plan.speed import Rates

MOST = 200
"""Finished runs that are looked at, the last ones."""

BOUNDS = (0.02, 1.0)
"""Of a listed rate, what a fit may say that is reached."""


@dataclass(frozen=True)
class Finished:
    """One run, planned and measured."""

    name: str
    device: str
    """As devices are called here: `toolkit.plan.devices`, or the processor."""
    number_format: str
    products_s: float
    """Seconds of a step's matrix products at the listed rate."""
    others_s: float
    """Seconds of its other operations at the listed bandwidth."""
    rest_s: float
    """Seconds planned for everything else of a step."""
    planned_s: float
    measured_s: float
    planned_bytes: int
    measured_bytes: int

    @property
    def time_error(self) -> float:
        """Of the planned step time, relative."""
        return self.planned_s / self.measured_s - 1.0

    @property
    def memory_error(self) -> float:
        """Of the planned peak, relative."""
        return self.planned_bytes / self.measured_bytes - 1.0


def ledger() -> Path:
    """The file in which finished runs of this user are noted."""
    return cache_dir() / "finished_runs.jsonl"


def note(run: Finished, path: Path | None = None) -> None:
    """Add `run` to the ledger."""
    file = ledger() if path is None else path
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(run)) + "\n")


def finished_runs(device: str, number_format: str, path: Path | None = None) -> list[Finished]:
    """Those on this device in this format; lines that another version has written are passed over."""
    file = ledger() if path is None else path
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines()[-MOST:]:
        try:
            run = Finished(**json.loads(line))
        except (TypeError, ValueError):
            continue
        if (run.device, run.number_format) == (device, number_format) and run.measured_s > run.rest_s:
            found.append(run)
    return found


def fit(runs: Sequence[Finished], default: Rates) -> Rates:
    """Rates under which the planned times come nearest to the measured ones, by relative error.

    Two unknowns, seconds = products / compute + others / memory: runs that differ in what they are made of tell them
    apart; of one run, or of runs alike, both are scaled together.
    """
    if not runs:
        return default
    together = _scaled(runs, default)
    if len(runs) < 2:
        return together
    # Least squares on both sides divided by what was measured: normal equations of two unknowns.
    rows = [(run.products_s, run.others_s, run.measured_s - run.rest_s) for run in runs]
    first = [(product / total, other / total) for product, other, total in rows]
    aa, ab, bb = (sum(one[i] * one[j] for one in first) for i, j in ((0, 0), (0, 1), (1, 1)))
    at, bt = (sum(one[i] for one in first) for i in (0, 1))
    determinant = aa * bb - ab * ab
    if determinant < 1e-6 * aa * bb:
        return together
    slow = (at * bb - bt * ab) / determinant, (bt * aa - at * ab) / determinant
    if min(slow) <= 0:
        return together
    return Rates(*(min(BOUNDS[1], max(BOUNDS[0], 1.0 / factor)) for factor in slow))


def _scaled(runs: Iterable[Finished], default: Rates) -> Rates:
    ratios = sorted(
        (run.measured_s - run.rest_s) / (run.products_s / default.compute + run.others_s / default.memory)
        for run in runs
    )
    ratio = ratios[len(ratios) // 2]
    clipped = (min(BOUNDS[1], max(BOUNDS[0], rate / ratio)) for rate in (default.compute, default.memory))
    return Rates(*clipped)


def said(runs: Sequence[Finished]) -> str:
    """How far off plans were."""
    if not runs:
        return "no finished run on this device yet: rates are assumed, and the first run corrects them"
    times = sorted(abs(run.time_error) for run in runs)
    memories = sorted(abs(run.memory_error) for run in runs)
    middle = len(runs) // 2
    return (
        f"fitted to {len(runs)} finished {'run' if len(runs) == 1 else 'runs'} on this device, whose plans were off by "
        f"{times[middle]:.0%} in time and {memories[middle]:.0%} in memory (median)"
    )
