"""Rows of CSV files: every field is the text that is written there. CSV has no types and no null.

An empty field is the empty text, with quotes or without. Fields are separated by commas, in a .tsv file by tabs.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.reading.column_names import check_once
from toolkit.data.reading.file_names import plain_name, rewriting
from toolkit.data.reading.text_files import open_lines
from toolkit.errors import DataError

_REPAIR = "repair the file there, or write it anew with every field quoted"
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars (|)"}


def csv_header(path: Path) -> list[str]:
    """The columns of `path`: the names in its first line without the white space around them, empty for an empty file.

    Raises DataError for a name that is there twice, and for a line that other marks separate than the file's name says.
    """
    names = _first_line(path)
    _check_separator(path, names)
    named = [names[place].strip() for place in _named(names)]
    check_once(path, named)
    if names and not named:
        raise DataError(
            f"{str(path)!r} has no name of a column in its first line",
            expected="a first line with the name of each column",
            do="write such a line above the rows",
        )
    return named


def is_numbered(path: Path) -> bool:
    """Whether the first column of `path` has no name while others have one: pandas writes the numbers of rows there."""
    names = _first_line(path)
    return bool(_named(names)) and not names[0].strip()


def _first_line(path: Path) -> list[str]:
    """The fields of the first line, none for an empty file."""
    with open_lines(path, newline="") as file:
        return next(_lines(file, path), (0, []))[1]


def _separator(path: Path) -> str:
    return "\t" if plain_name(path).suffix.lower() == ".tsv" else ","


def _check_separator(path: Path, names: list[str]) -> None:
    """Raise DataError for a first line whose columns other marks separate, or white space before a quote."""
    quoted = next((name for name in names if name[:1].isspace() and name.lstrip().startswith('"')), None)
    if quoted is not None:
        raise DataError(
            f"{str(path)!r}, line 1 has white space before the quote of {quoted.strip()}, which makes the quotes text",
            expected="quotes next to what separates the fields",
            do="remove the white space after every separator",
        )
    expected = _separator(path)
    found = next((mark for mark in _SEPARATORS if mark != expected and len(names) == 1 and mark in names[0]), None)
    if found is None:
        return
    what, do = (
        f"is separated by {_SEPARATORS[found]}, by its first line: {names[0][:80]!r}",
        f"write it anew with {_SEPARATORS[expected]}: {_rewriting(path, found, expected)}",
    )
    if names[0].lower().startswith("sep="):
        what, do = f"begins with {names[0]!r}, which spreadsheets write", "remove that line"
    elif found in (",", "\t"):
        suffix = ".csv" if found == "," else ".tsv"
        do = f"rename it: {path.name.replace(plain_name(path).suffix, suffix)}"
    raise DataError(
        f"{str(path)!r} {what}",
        expected=f"columns separated by {_SEPARATORS[expected]}, as the name of the file says",
        do=do,
    )


def _rewriting(path: Path, found: str, expected: str) -> str:
    """The command that separates the fields of `path` by `expected` in the place of `found`."""
    script = f"import csv, sys; csv.writer(sys.stdout, delimiter={expected!r}).writerows(csv.reader(sys.stdin, delimiter={found!r}))"
    if expected == ",":
        script = script.replace(", delimiter=','", "")
    return "".join(rewriting(path, script, plain_name(path).suffix))


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The fields of each row of `path`, one for each column of its header; an empty field is the empty text.

    A column without a name is left out where it is empty, as spreadsheets leave it at the end, or where it is the
    first one and holds whole numbers, those that pandas gives to rows. Raises DataError, with the line, for any other.
    """
    with open_lines(path, newline="") as file:
        lines = _lines(file, path)
        names = next(lines, (0, []))[1]
        named = _named(names)
        unnamed = sorted({*range(len(names))} - {*named})
        for number, fields in lines:
            if len(fields) != len(names):
                if len(fields) == 1 and not fields[0].strip():
                    continue  # a line of white space only
                raise DataError(
                    f"{str(path)!r}, line {number:,} has {len(fields)} fields, the header {len(names)}",
                    expected=f"as many fields in every line as the header has, separated by {_SEPARATORS[_separator(path)]}",
                    do=_REPAIR,
                )
            if not unnamed:
                yield fields
                continue
            for place in unnamed:
                if fields[place].strip() and not (place == 0 and fields[0].isdecimal()):
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
    reader = csv.reader(file, strict=True, delimiter=_separator(path))
    ended = 0
    try:
        for fields in reader:
            ended = reader.line_num
            if fields:
                yield ended, fields
    except csv.Error as error:
        separator = _SEPARATORS[_separator(path)]
        begins = f", in the row that begins in line {ended + 1:,}," if reader.line_num > ended + 1 else ""
        what = f"line {reader.line_num:,}{begins} is not CSV: {error}"
        if "unexpected end" in str(error):
            what = f"line {ended + 1:,} is not CSV: a quote that opens there is never closed"
        raise DataError(
            f"{str(path)!r}, {what}",
            expected=f'fields separated by {separator}; one with such a mark, a line end or a quote stands in "quotes", a quote in it twice',
            do=_REPAIR,
        ) from None
