"""What a check found: one frozen record per fault, and the one error that carries those that must stop a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from toolkit.ds_config.edits import Edit
from toolkit.errors import ConfigError

Severity = Literal["error", "warning"]
"""error: DeepSpeed stops, ignores what was written, or trains something else than was written. warning: it does what
its documentation says, but a better or clearer setting exists, or a default surprises."""


Role = Literal["config", "arguments", "accelerate"]
"""Of which file a finding speaks: the DeepSpeed JSON, the Trainer's arguments, or accelerate's file."""


@dataclass(frozen=True)
class Finding:
    """One fault of a DeepSpeed configuration."""

    where: str
    """Dotted key, e.g. "zero_optimization.stage"; "" for the file as a whole."""
    rule: str
    """Id of the rule that speaks."""
    what: str
    """Key and value that are wrong."""
    expected: str
    """Values that work."""
    do: str
    """The edit that cures it."""
    severity: Severity = "error"
    role: Role = "config"
    file: str = ""
    """The file as it was named; "" where the configuration comes from none."""
    line: int | None = None
    """Of the key, or of the section that lacks it; both counted from 1."""
    column: int | None = None
    fix: tuple[Edit, ...] = ()
    """What cures it for certain; empty where the author has to decide."""

    def __str__(self) -> str:
        return f"[{self.rule}] {self.what}\n    expected: {self.expected}\n    do this:  {self.do}"


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """`findings` without duplicates: errors before warnings, then by place and rule."""
    return sorted(
        set(findings),
        key=lambda found: (
            found.severity,
            found.file,
            found.line or 0,
            found.column or 0,
            found.where,
            found.rule,
            found.what,
        ),
    )


def errors_in(findings: Iterable[Finding]) -> list[Finding]:
    """Those of `findings` that are errors."""
    return [finding for finding in findings if finding.severity == "error"]


def raise_errors(findings: Iterable[Finding], source: str) -> None:
    """Raise one ConfigError that holds every error among `findings`; nothing when there is none. `source` names the file or recipe."""
    ordered = errors_in(sorted_findings(findings))
    if not ordered:
        return
    if len(ordered) == 1:
        only = ordered[0]
        raise ConfigError(f"{source}: [{only.rule}] {only.what}", expected=only.expected, do=only.do)
    listing = "\n".join(f"  {number}. {finding}" for number, finding in enumerate(ordered, start=1))
    raise ConfigError(
        f"{source}: {len(ordered)} errors\n{listing}",
        expected="a configuration without errors",
        do="make the edits above; `toolkit rules` says why each rule is there",
    )
