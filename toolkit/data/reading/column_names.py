"""Names of columns: of files that are read as one table, and of those that nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, first_few


def check_once(path: Path, names: Sequence[str]) -> None:
    """Raise DataError for a name that `names`, the columns of `path`, hold twice."""
    twice = [(name, count) for name, count in Counter(names).items() if count > 1]
    if twice:
        name, count = twice[0]
        raise DataError(
            f"{str(path)!r} has the column {name!r} {count} times",
            expected="each column once, with a name of its own (in CSV: in the first line)",
            do="rename the columns",
        )


def check_same(paths: Sequence[Path], columns: Sequence[list[str]]) -> None:
    """Raise DataError unless all `paths` have the same `columns`."""
    for path, found in zip(paths, columns, strict=True):
        if found != columns[0]:
            raise DataError(
                f"{str(path)!r} has the columns {first_few(found)}, but {str(paths[0])!r} has {first_few(columns[0])}",
                expected="the same columns in all files of one source",
                do="read the files apart, or write them with the same columns",
            )


class ColumnMissing(DataError):
    """A row without a column that is looked for; whether other rows have it tells what is wrong."""


def missing(names: Sequence[str], row: Mapping[str, Any], share: str = "") -> DataError:
    """The error for `row`, which lacks the columns `names` of other rows; `share` says how many rows do."""
    is_one = len(names) == 1
    return DataError(
        f"{' and '.join(names)} {'is' if is_one else 'are'} not there{share}, while other rows have "
        f"{'it' if is_one else 'them'}; the columns are {first_few(list(row)) if row else '(none)'}",
        expected=f"{' and '.join(names)} in every row",
        do=f"write {'it' if is_one else 'them'} there, or remove the row",
    )


def unused_columns(row: Mapping[str, Any], columns: Callable[[Mapping[str, Any]], Collection[str]]) -> list[str]:
    """The columns of `row` that hold something and are not among those that `columns` says are read."""
    read = columns(row)
    return [name for name in _filled(row) if name not in read]


def used_columns(row: Mapping[str, Any], columns: Callable[[Mapping[str, Any]], Collection[str]]) -> list[str]:
    """The columns of `row` that hold something and are among those that `columns` says are read."""
    read = columns(row)
    return [name for name in _filled(row) if name in read]


def _filled(row: Mapping[str, Any]) -> list[str]:
    return [name for name, value in row.items() if not _is_empty(value)]


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)
