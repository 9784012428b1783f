"""As which format a row is read, by which of its columns, and how that is said for many rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Recognised:
    """The format of one row."""

    name: str
    """In the words of a reader, "Alpaca"."""
    columns: tuple[str, ...]
    """The columns that are read, in the row's order."""
    remark: str = ""
    """What of the row is not learned, in words that follow "rows", such as "that end with ..."."""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.columns)})"


def by_format(counted: Iterable[tuple[Recognised, int]]) -> dict[str, tuple[dict[str, None], int]]:
    """Of each format its columns, in order, and its rows."""
    found: dict[str, tuple[dict[str, None], int]] = {}
    for form, count in counted:
        columns, before = found.get(form.name, ({}, 0))
        found[form.name] = ({**columns, **dict.fromkeys(form.columns)}, before + count)
    return found
