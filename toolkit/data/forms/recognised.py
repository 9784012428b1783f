"""As which format rows are read, by which of their columns, and how that is said."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from toolkit.data.example import Row
from toolkit.errors import DataError, plural

UNANSWERED = "end with messages after the last answer: nothing replies to them, so they are left out"

FIRST = 100
"""Rows of a stream that are looked at; of prepared data all are."""


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


def first_recognised(rows: Iterable[Row], recognised: Callable[[Row], Recognised | None]) -> Counter[Recognised]:
    """The formats of the first FIRST of `rows`, up to one that cannot be used: that is said when it is encoded."""
    counted: Counter[Recognised] = Counter()
    with contextlib.suppress(DataError):
        counted.update(form for row in islice(rows, FIRST) if (form := recognised(row)) is not None)
    return counted


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
