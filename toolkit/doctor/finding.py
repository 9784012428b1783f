"""What one check of `toolkit doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at."""
    status: Literal["ok", "warn", "fail"]
    """"fail": a run breaks or hangs; "warn": some runs do, or are slower."""
    found: str
    fix: str = ""
    """A command or an edit; empty when nothing is wrong."""
