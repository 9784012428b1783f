"""What finished runs have taught: measured step times beside the work that was planned, and rates fitted to them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.cache import cache_dir
from toolkit.plan.speed import Rates

MOST = 200
"""Finished runs that are looked at, the last ones."""

RIDGE = 0.01
"""How strongly a fit holds on to the proportion of the two rates that is assumed, in squares of relative errors."""

FARTHEST = 4.0
"""Times by which a fit may move either rate away from that proportion."""


@dataclass(frozen=True)
class Finished:
    """One run, planned and measured."""

    name: str
    device: str
    """As devices are called here: `toolkit.plan.devices`, or the processor."""
    number_format: str
    flops: float
    """Of a step's matrix products and attention on the device, or on all cores of the processor."""
    moved: float
    """Bytes that its other operations move there."""
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

    def seconds(self, rates: Rates, flops_per_s: float, bytes_per_s: float) -> float:
        """What a step would be planned to take at `rates` of these listed ones."""
        return self.flops / (flops_per_s * rates.compute) + self.moved / (bytes_per_s * rates.memory) + self.rest_s


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


def fit(runs: Sequence[Finished], flops_per_s: float, bytes_per_s: float, default: Rates) -> Rates:
    """Rates, as shares of the listed `flops_per_s` and `bytes_per_s`, under which planned times come nearest to measured ones.

    Two unknowns, the seconds of a FLOP and of a byte, by least squares of the relative errors. `default` is a starting
    point: one factor for both is fitted first, and what the runs do not tell apart stays near it (ridge regression).
    """
    if not runs:
        return default
    begin = 1.0 / (flops_per_s * default.compute), 1.0 / (bytes_per_s * default.memory)
    rows = [(run.flops * begin[0], run.moved * begin[1], run.measured_s - run.rest_s, run.measured_s) for run in runs]
    ratios = [left / (first + second) for first, second, left, _ in rows]
    common = statistics.median(ratios)
    # Of x, y near 1: sum over runs of ((common (x first + y second) - left) / measured)^2 + RIDGE ((x - 1)^2 + (y - 1)^2).
    scaled = [
        (common * first / total, common * second / total, (left - common * (first + second)) / total)
        for first, second, left, total in rows
    ]
    aa, ab, bb = (sum(row[i] * row[j] for row in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    at, bt = (sum(row[i] * row[2] for row in scaled) for i in (0, 1))
    aa, bb = aa + RIDGE, bb + RIDGE
    determinant = aa * bb - ab * ab
    x, y = 1.0 + (at * bb - bt * ab) / determinant, 1.0 + (bt * aa - at * ab) / determinant
    x, y = (min(FARTHEST, max(1.0 / FARTHEST, value)) for value in (x, y))
    return Rates(default.compute / (common * x), default.memory / (common * y))


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
