"""Deviations from the reference, what counts as too far, and the table. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from toolkit.parity.problem import Curves


@dataclass(frozen=True)
class Tolerance:
    """Largest relative deviations from plain PyTorch in the same number format that are rounding."""

    loss: float
    grad_norm: float
    weights: float

    def __str__(self) -> str:
        return f"loss {self.loss:.0e}, grad norm {self.grad_norm:.0e}, weights {self.weights:.0e}"


# Three to ten times the largest that was measured over both tasks and some architectures (benchmarks/parity_table.py);
# weights further off, since Adam makes a whole step of what is rounding in a gradient of zero.
TOLERANCES = {
    "fp32": Tolerance(loss=2e-6, grad_norm=5e-6, weights=1e-5),
    "bf16": Tolerance(loss=1e-3, grad_norm=2e-2, weights=1e-2),
    "fp16": Tolerance(loss=2e-4, grad_norm=5e-3, weights=5e-3),
}

MUON = Tolerance(loss=1e-3, grad_norm=1e-3, weights=1e-3)
"""Muon, in fp32: it orthogonalises in bf16, where a last bit of the input moves the result."""

SPREAD = 1e-3
"""16 bits: largest relative deviation of two strategies' losses from each other."""

Verdict = Literal["ok", "deviates", "failed", "refused"]


@dataclass(frozen=True)
class Row:
    """One strategy: its largest deviations from the reference over all steps, or why there are none."""

    name: str
    world_size: int
    verdict: Verdict
    loss: float | None = None
    grad_norm: float | None = None
    """None where the engine knows no norm (Muon)."""
    weights: float | None = None
    message: str = ""
    """Why the strategy was refused (the rule's id, or the message's first line), or how it failed."""
    seconds: float = 0.0
    detail: str = ""
    """What the ranks printed that failed; in the JSON only."""


@dataclass(frozen=True)
class Report:
    """All rows, and what they were compared on."""

    recipe: str
    architecture: str
    num_parameters: int
    dtype: str
    steps: int
    tolerance: Tolerance
    rows: list[Row]
    spread: float | None
    """16 bits: largest relative deviation of two strategies' losses from each other."""

    @property
    def holds(self) -> bool:
        """Whether every strategy that was not refused is within tolerance."""
        apart = self.spread is not None and not self.spread <= SPREAD
        return not apart and all(row.verdict in ("ok", "refused") for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; a deviation that is not finite is null."""
        values = asdict(self) | {"holds": self.holds}
        values["rows"] = [{key: _plain(value) for key, value in row.items()} for row in values["rows"]]
        return values | {"spread": _plain(self.spread)}


def tolerance(dtype: str, optimizer: str) -> Tolerance:
    """What is rounding in `dtype` under this optimizer."""
    return MUON if optimizer == "muon" and dtype == "fp32" else TOLERANCES[dtype]


def row(name: str, world_size: int, found: Curves, reference: Curves, limit: Tolerance, seconds: float) -> Row:
    """The row of a strategy that was trained."""
    loss = deviation(found.losses, reference.losses)
    norms = [norm for norm in found.norms if norm is not None]
    skipped = len(found.norms) - len(norms)
    if not norms:
        norm = None
    else:
        norm = math.inf if skipped else deviation(norms, [norm for norm in reference.norms if norm is not None])
    within = loss <= limit.loss and found.weights <= limit.weights and (norm is None or norm <= limit.grad_norm)
    message = f"{skipped} of {len(found.norms)} steps skipped" if norms and skipped else ""
    verdict: Verdict = "ok" if within else "deviates"
    return Row(name, world_size, verdict, loss, norm, found.weights, message, seconds)


def deviation(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Largest relative difference; inf when a value is not finite or the lengths differ."""
    if len(found) != len(wanted) or not all(map(math.isfinite, found)):
        return math.inf
    return max((abs(one - other) / abs(other) for one, other in zip(found, wanted, strict=True)), default=0.0)


def spread(curves: Sequence[Curves]) -> float | None:
    """Largest deviation of any two runs' losses from each other."""
    pairs = itertools.combinations(curves, 2)
    return max((deviation(one.losses, other.losses) for one, other in pairs), default=None)


def headline(report: Report) -> str:
    """What the table shows, in one line."""
    return (
        f"{report.recipe}, scaled down to a {report.architecture} of {report.num_parameters:,} parameters, "
        f"{report.steps} steps in {report.dtype}: largest relative deviation from plain PyTorch "
        f"(tolerance: {report.tolerance})"
    )


def table(report: Report) -> Table:
    """The rows for a terminal."""
    made = Table()
    made.add_column("strategy", no_wrap=True)
    for heading in ("ranks", "loss", "grad norm", "weights"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("verdict", overflow="fold")
    for one in report.rows:
        cells = map(_number, (one.loss, one.grad_norm, one.weights))
        made.add_row(one.name, str(one.world_size), *cells, Text(_remark(one)))
    if report.spread is not None:
        remark = "ok" if report.spread <= SPREAD else f"OUT OF TOLERANCE ({SPREAD:.0e})"
        made.add_row("between strategies", "", _number(report.spread), "", "", remark)
    return made


def _remark(one: Row) -> str:
    words = {"ok": "ok", "deviates": "OUT OF TOLERANCE", "failed": "FAILED", "refused": "refused"}[one.verdict]
    return f"{words}: {one.message}" if one.message else words


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
