"""What one check of `toolkit doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
"""How a finding ends. "fail": a run breaks or hangs; "warn": some runs do, or are slower."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `Check` makes them."""

    check: str
    """What was looked at."""
    status: Status
    found: str
    why: str
    """What it means for a run, in a sentence."""
    fix: str = ""
    """A command or an edit; empty when nothing is wrong."""


@dataclass(frozen=True)
class Check:
    """What is looked at, and why: no finding of it goes without the reason, and none that is not ok without its cure."""

    name: str
    why: str

    def ok(self, found: str) -> Finding:
        """Nothing is wrong."""
        return Finding(self.name, "ok", found, self.why)

    def warn(self, found: str, fix: str) -> Finding:
        """Some runs break, or are slower."""
        return Finding(self.name, "warn", found, self.why, fix)

    def fail(self, found: str, fix: str) -> Finding:
        """A run breaks or hangs."""
        return Finding(self.name, "fail", found, self.why, fix)
