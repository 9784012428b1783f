"""Rows of CSV files: every field is the text that is written there. CSV has no types and no null."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.text_files import open_text
from toolkit.errors import DataError

_REPAIR = "repair the file there, or write it anew with every field quoted"


def csv_header(path: Path) -> list[str]:
    """The names in the first line of `path`, empty for a file without any. Raises DataError for one that is there twice."""
    with open_text(path, newline="") as file:
        names = next(_lines(file, path), (0, []))[1]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{str(path)!r} has the column {twice[0]!r} {Counter(names)[twice[0]]} times",
            expected="a first line with the name of each column once",
            do="rename the columns; a file without such a line needs one",
        )
    return names


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of `path` below its header; an empty field is the empty text. Raises DataError, with the line."""
    names = csv_header(path)
    with open_text(path, newline="") as file:
        lines = _lines(file, path)
        next(lines, None)
        for number, fields in lines:
            if len(fields) != len(names):
                raise DataError(
                    f"{str(path)!r}, line {number:,} has {len(fields)} fields, the header {len(names)}",
                    expected="as many fields in every line as the header has, separated by commas",
                    do=_REPAIR,
                )
            yield dict(zip(names, fields, strict=True))


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
