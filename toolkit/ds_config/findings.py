"""What a check found: one frozen record per fault, and the one error that carries them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.errors import ConfigError


@dataclass(frozen=True, order=True)
class Finding:
    """One fault of a DeepSpeed configuration; sorts by place, then rule."""

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

    def __str__(self) -> str:
        return f"[{self.rule}] {self.what}\n    expected: {self.expected}\n    do this:  {self.do}"


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """`findings` without duplicates, by place and rule."""
    return sorted(set(findings))


def raise_findings(findings: Iterable[Finding], source: str) -> None:
    """Raise one ConfigError that holds every finding; nothing when there is none. `source` names the file or recipe."""
    ordered = sorted_findings(findings)
    if not ordered:
        return
    if len(ordered) == 1:
        only = ordered[0]
        raise ConfigError(f"{source}: [{only.rule}] {only.what}", expected=only.expected, do=only.do)
    listing = "\n".join(f"  {number}. {finding}" for number, finding in enumerate(ordered, start=1))
    raise ConfigError(
        f"{source}: {len(ordered)} findings\n{listing}",
        expected="a configuration without findings",
        do="make the edits above; `toolkit rules` says why each rule is there",
    )
