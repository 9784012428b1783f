"""As which format rows are read, by which of their columns, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import plural

UNANSWERED = "end with messages after the last answer: nothing replies to them, so they are left out"


@dataclass(frozen=True)
class Recognised:
    """The format of one row."""

    name: str
    """In the words of a reader, "Alpaca"."""
    columns: tuple[str, ...]
    """The columns that are read, in the row's order."""
    remark: str = ""
    """What of the row is left out, in words that follow "rows"."""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.columns)})"


def recognised_lines(counted: Mapping[Recognised, int], *, first: bool = False) -> list[str]:
    """What to say about rows of the formats `counted`: each format with its columns and rows, then what is left out.

    `first`: these were the first rows only.
    """
    columns: dict[str, dict[str, None]] = {}
    rows: dict[str, int] = {}
    remarks: dict[str, int] = {}
    for form, count in counted.items():
        columns.setdefault(form.name, {}).update(dict.fromkeys(form.columns))
        rows[form.name] = rows.get(form.name, 0) + count
        if form.remark:
            remarks[form.remark] = remarks.get(form.remark, 0) + count
    if not rows:
        return []
    total = f"the first {plural(sum(rows.values()), 'row')}" if first else plural(sum(rows.values()), "row")
    named = [f"{count:,} as {name} ({', '.join(columns[name])})" for name, count in rows.items()]
    said = [f"  {total} read: {', '.join(named)}"]
    return said + [f"note: {count:,} of {total} {remark}" for remark, count in remarks.items()]
