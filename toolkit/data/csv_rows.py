"""Rows of CSV files: every field is the text that is written there. CSV has no types and no null."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.column_names import check_once
from toolkit.data.text_files import open_text
from toolkit.errors import DataError

_REPAIR = "repair the file there, or write it anew with every field quoted"


def csv_header(path: Path) -> list[str]:
    """The columns of `path`: the names in its first line, empty for a file without any. Raises DataError for one twice."""
    with open_text(path, newline="") as file:
        names = next(_lines(file, path), (0, []))[1]
    named = [names[place] for place in _named(names)]
    check_once(path, named)
    if names and not named:
        raise DataError(
            f"{str(path)!r} has no name of a column in its first line",
            expected="a first line with the name of each column",
            do="write such a line above the rows",
        )
    return named


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The fields of each row of `path`, one for each column of its header; an empty field is the empty text.

    A column without a name is left out where it is empty, as spreadsheets leave it at the end, or where it is the
    first one, as pandas writes the numbers of the rows. Raises DataError, with the line, for any other.
    """
    with open_text(path, newline="") as file:
        lines = _lines(file, path)
        names = next(lines, (0, []))[1]
        named = _named(names)
        unnamed = sorted({*range(1, len(names))} - {*named})
        all_named = len(named) == len(names)
        for number, fields in lines:
            if len(fields) != len(names):
                if len(fields) == 1 and not fields[0].strip():
                    continue  # a line of white space only
                raise DataError(
                    f"{str(path)!r}, line {number:,} has {len(fields)} fields, the header {len(names)}",
                    expected="as many fields in every line as the header has, separated by commas",
                    do=_REPAIR,
                )
            if all_named:
                yield fields
                continue
            for place in unnamed:
                if fields[place].strip():
                    raise DataError(
                        f"{str(path)!r}, line {number:,} has {fields[place][:60]!r} in column {place + 1}, "
                        "which has no name",
                        expected="a name in the first line for every column that holds something",
                        do="name the column, or quote the text before it if a comma in it has split it",
                    )
            yield [fields[place] for place in named]


def _named(names: list[str]) -> list[int]:
    return [place for place, name in enumerate(names) if name.strip()]


def _lines(file: Iterator[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the line where each row ends, and its fields; blank lines are left out."""
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the 128 KiB that the module allows by default
    reader = csv.reader(file, strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r}, line {reader.line_num:,} is not CSV: {error}",
            expected='fields separated by commas; one with a comma, a line end or a quote stands in "quotes", a quote in it twice',
            do=_REPAIR,
        ) from None
