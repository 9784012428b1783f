"""The name of a row in messages: its number in the source and, where several files are read, in its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from toolkit.errors import DataError

if TYPE_CHECKING:
    from toolkit.data.reading.sources import Source

RowName: TypeAlias = Callable[[int], str]
"""Number (1 is the first) -> what a message calls the row."""

MOST_BYTES = 2**30
"""Of files that are read once more, to find in which of them a row is: seconds."""


def row_names(source: Source, field: str) -> RowName:
    """The names of the rows of `source`, which `field` of the recipe names. Files are counted only when one is asked for."""
    return partial(_name, field=field, files=source.files, place=source.place)


def plain_names(field: str) -> RowName:
    """The names of rows whose file is not known."""
    return partial(_name, field=field)


def _name(number: int, field: str, files: Sequence[Path] = (), place: Callable[[int], int] | None = None) -> str:
    if place is not None:
        number = place(number - 1) + 1
    said = f"row {number:,} of {field}"
    if len(files) == 1:
        return f"{said}, {str(files[0])!r}"
    from toolkit.data.reading.files import num_rows  # datasets and pandas, which a plan without data can do without

    before, size = 0, 0
    for path in files:
        try:
            size += path.stat().st_size
            if size > MOST_BYTES:
                break
            rows = num_rows(path)
        except (DataError, OSError):  # not a file of rows, or gone meanwhile: the message is about the row
            break
        if number <= before + rows:
            return f"{said}, row {number - before:,} of {str(path)!r}"
        before += rows
    return said


def named(error: DataError, name: str) -> DataError:
    """`error` about a row, with its name before it."""
    return DataError(f"{name}: {error.what}", expected=error.expected, do=error.do)
