"""What a label of a row says: a class, or nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from toolkit.data.encoding import COUNT_IN
from toolkit.data.example import Row
from toolkit.data.reading.class_names import class_names, with_names
from toolkit.data.reading.column_names import ColumnMissing, missing
from toolkit.data.reading.row_names import RowName, named
from toolkit.errors import DataError, first_few

NO_LABEL = "-1"
"""What data sets write where there is no label, as GLUE in its test splits and ClassLabel of datasets do."""


NOT_A_NAME = {"na", "n/a", "#n/a", "<na>", "nan", "null", "none"}
"""What programs write, in any case, where a table has no value; as text in a file it is as good a name as any."""
_FRACTION = re.compile(r"\s*[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?\s*", re.IGNORECASE)


def label_of(row: Row, column: str) -> str:
    """The label of `row` as text. Raises DataError where it is none, or several."""
    label = row.get(column)
    if isinstance(label, str | int) and str(label).strip():
        return str(label)
    if column not in row:
        raise ColumnMissing(
            f"task.label_field={column!r} is not there; the columns are {first_few(list(row))}",
            expected="an integer or a class name in task.label_field",
            do="pass --task.name reward_model (or dpo, orpo, simpo), which learn from chosen and rejected answers"
            if {"chosen", "rejected"} <= row.keys()
            else "set task.label_field to the column that holds the class",
        )
    if label is None or isinstance(label, str):
        raise DataError(
            f"task.label_field={column!r} is {'null' if label is None else 'empty'}",
            expected="a class in every row",
            do="remove the row, or write its class",
        )
    if isinstance(label, float):
        raise _fraction(column, label)
    several = isinstance(label, list | tuple)
    raise DataError(
        f"task.label_field={column!r} gives {label!r:.80}{', several classes for one text' if several else ''}",
        expected="one class per text: an integer, a name, true or false",
        do="write the class as an integer or a name"
        + (": where texts may have several, write a list in every row, from the first on" if several else ""),
    )


def is_fraction(label: object) -> bool:
    """Whether `label` is the text of a number with a fraction: CSV has them as text, other files as numbers."""
    return isinstance(label, str) and _FRACTION.fullmatch(label) is not None


def _fraction(column: str, label: object) -> DataError:
    is_nan = isinstance(label, float) and math.isnan(label)
    return DataError(
        f"task.label_field={column!r} gives {label!r}, a number with a fraction",
        expected="one class per text: an integer, a name, true or false",
        do="remove the row: it has no label"
        if is_nan
        else "write the class as an integer (pandas makes fractions of a column of integers where some are missing), or as "
        "a name that is no number",
    )


def labels_of(rows: Any, column: str, row_name: RowName) -> Iterator[str]:
    """The label of every row, by name where the source names its classes. Raises DataError, with the row, for none."""
    names = class_names(rows)
    if column in (getattr(rows, "column_names", None) or ()):
        rows = rows.select_columns([column])
    numbered = enumerate(rows, start=1)
    for number, row in numbered:
        try:
            label = label_of(with_names(row, names) if names else row, column)
            if column not in names and is_fraction(row[column]):
                raise _fraction(column, row[column])
            yield label
        except ColumnMissing as error:
            others_have_it = number > 1 or any(column in other for _, other in islice(numbered, COUNT_IN))
            raise named(missing([column], row) if others_have_it else error, row_name(number)) from None
        except DataError as error:
            if column not in row or not _is_none(row[column]):
                raise named(error, row_name(number)) from None
            value = "null" if row[column] is None else "''"
            count, total = 1, number
            for total, other in numbered:  # noqa: B007
                count += _is_none(other.get(column))
            if count == total:
                raise _none_labelled(column, row_name(1), value, total) from None
            what = f"{error.what} (there, and in {count:,} of {total:,} rows)" if count > 1 else error.what
            raise named(DataError(what, expected=error.expected, do=error.do), row_name(number)) from None


def _is_none(label: object) -> bool:
    """Whether a label is null or a text without a letter."""
    return label is None or (isinstance(label, str) and not label.strip())


def counted(labels: Iterable[str], column: str, row_name: RowName, *, signs: bool = False) -> Counter[str]:
    """How often each label occurs. Raises DataError where rows have none, NO_LABEL.

    With `signs` it is a class where "1" is the only other one.
    """
    counts: Counter[str] = Counter()
    first = 0
    for number, label in enumerate(labels, start=1):
        counts[label] += 1
        if label == NO_LABEL and not first:
            first = number
    if first and not (signs and counts.keys() == {NO_LABEL, "1"}):
        raise unlabelled(column, row_name(first), counts[NO_LABEL], counts.total())
    return counts


def unlabelled(column: str, row: str, count: int | None = None, total: int | None = None) -> DataError:
    """The error for rows without a label, of which `row` is the first: `count` of `total` where that is known."""
    meaning = "which stands for 'no label' (as in the test splits of GLUE)"
    if count is not None and count == total:
        return _none_labelled(column, row, f"{NO_LABEL}, {meaning},", total)
    share = "" if count is None else f" (there, and in {count:,} of {total:,} rows)"
    return DataError(
        f"{row + ': ' if row else ''}task.label_field={column!r} is {NO_LABEL}{share}, {meaning}",
        expected="a class in every row",
        do="remove the rows without a label; if -1 is a class of its own, give it a name, 'negative' for instance",
    )


def _none_labelled(column: str, row: str, value: str, total: int) -> DataError:
    """The error for `total` rows that all have `value` for a label; `row` is the first."""
    return DataError(
        f"{row}: task.label_field={column!r} is {value} there and in all {total:,} rows: the data is not labelled",
        expected="a class in every row",
        do="choose rows that have labels: another file, or another split (data.split, data.evaluation_split)",
    )
