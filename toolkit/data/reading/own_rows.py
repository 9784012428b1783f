"""Rows that a task makes itself, as a source like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow

from toolkit.data.example import Row
from toolkit.data.reading.content import combined
from toolkit.data.reading.sources import Source
from toolkit.errors import DataError, one_line, with_type


def own_source(rows: Sequence[Row], split: str, field: str, max_examples: int | None = None) -> Source:
    """The first `max_examples` of `rows`, held in memory; what they hold decides the digest. Raises DataError for none."""
    try:
        count = len(rows) if max_examples is None else min(len(rows), max_examples)
        found = [dict(rows[index]) for index in range(count)]
    except (TypeError, ValueError):
        raise _wrong(f"{field}='own': rows({split!r}) gave {with_type(rows)}", "a list of rows, each a dict") from None
    if not found:
        raise _wrong(f"{field}='own': rows({split!r}) is empty", "at least one row")
    names = found[0].keys()
    for number, row in enumerate(found, start=1):
        if row.keys() != names:
            raise _wrong(
                f"row {number:,} of {field}: it has the columns {sorted(map(str, row))}, the first row {sorted(map(str, names))}",
                "the same columns in every row, None where there is nothing",
            )
    try:
        table = datasets.Dataset.from_dict({name: [row[name] for row in found] for name in names})
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _wrong(
            f"{field}='own': rows({split!r}) cannot be kept: {one_line(error)}",
            "in each column values of one type: numbers, text, bytes, arrays and lists of them, objects",
        ) from None
    return Source(table, combined("own", split, _digest(table)))


def _digest(table: Any) -> str:
    """Of the values, whatever program and machine holds them."""
    found = hashlib.sha256()
    for row in table:
        found.update(repr(row).encode())
    return found.hexdigest()


def _wrong(what: str, expected: str) -> DataError:
    return DataError(what, expected=expected, do="correct rows of task.target")
