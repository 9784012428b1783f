"""What tasks read in the columns of a row, or why it cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from toolkit.data.example import Row
from toolkit.data.reading.column_names import ColumnMissing
from toolkit.errors import DataError, first_few, not_apart


def in_column(rows: Iterable[Row], column: str) -> Iterable[Row]:
    """`rows` with nothing but `column`, where that spares reading the others."""
    select: Any = getattr(rows, "select_columns", None)
    narrow = select is not None and column in (getattr(rows, "column_names", None) or ())
    return select([column]) if narrow else rows


def value_of(row: Row, column: str, field: str, expected: str) -> Any:
    """What `row` has in `column`, which task.`field` names. Raises DataError where it has no such column."""
    if column not in row:
        raise ColumnMissing(
            f"task.{field}={column!r} is not there{not_apart(column)}; the columns are {first_few(list(row))}",
            expected=expected,
            do=f"set task.{field} to the column that holds it",
        )
    return row[column]


def text_of(row: Row, column: str, field: str) -> str:
    """The text in `column`. Raises DataError where it is none, or empty."""
    value = value_of(row, column, field, "a text")
    if value is None or isinstance(value, str):
        return checked_text(value, f"task.{field}={column!r}")
    texts = [name for name, other in row.items() if isinstance(other, str)]
    raise DataError(
        f"task.{field}={column!r} gives {value!r:.80}; columns with text here are {first_few(texts)}",
        expected=f"a text in task.{field}",
        do=f"set task.{field} to the column that holds it",
    )


def checked_text(value: Any, where: str) -> str:
    """`value`, found at `where`. Raises DataError unless it is text that says something."""
    if isinstance(value, str) and value.strip():
        return value
    if value is None or isinstance(value, str):
        raise DataError(
            f"{where} is {'null' if value is None else 'empty'}",
            expected="text in every row",
            do="remove the row, or write its text",
        )
    raise DataError(f"{where} gives {value!r:.80}", expected="a text", do="write it as text, or remove the row")
