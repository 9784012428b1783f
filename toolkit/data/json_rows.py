"""Rows of JSON files, kept as the text they are: no type is guessed, a date stays a string."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from toolkit.data.text_files import open_text
from toolkit.errors import DataError


def json_texts(path: Path) -> Iterator[str]:
    """The JSON text of every row of `path`: JSON lines of objects, or one JSON list of objects.

    Raises DataError, with the line, for anything else.
    """
    if _starts_with_a_list(path):
        yield from _list_elements(path)
        return
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                _check_line(stripped, f"{str(path)!r}, line {number:,}")
                yield stripped


def decode(texts: list[str]) -> dict[str, list[Any]]:
    """Rows as columns, which is how datasets wants them; a key that a row lacks is None there."""
    rows = [json.loads(text) for text in texts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _starts_with_a_list(path: Path) -> bool:
    with open_text(path) as file:
        while block := file.read(4096):
            if start := block.lstrip():
                return start.startswith("[")
    return False


def _check_line(line: str, where: str) -> None:
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise DataError(
            f"{where} is not JSON: {_reason(error)}; it starts with {line[:60]!r}",
            expected='one JSON object per line, for instance {"text": "..."}',
            do="repair or remove the line",
        ) from None
    _check_object(row, where, line)


def _list_elements(path: Path) -> Iterator[str]:
    with open_text(path) as file:
        try:
            rows = json.load(file, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise _bad_list(f"{str(path)!r}, line {error.lineno:,}", error) from None
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise _bad_list(repr(str(path)), error) from None
    for number, row in enumerate(rows, start=1):
        text = json.dumps(row)
        _check_object(row, f"{str(path)!r}, element {number:,} of the list", text)
        yield text


def _bad_list(where: str, error: ValueError) -> DataError:
    return DataError(
        f"{where} is not JSON: {_reason(error)}",
        expected="one list of objects, or one object per line",
        do="repair the file there",
    )


def _check_object(row: object, where: str, text: str) -> None:
    if not isinstance(row, dict) or not row:
        kind = "an empty object" if row == {} else f"of type {type(row).__name__}"
        raise DataError(
            f"{where} is {kind}",
            expected='a JSON object with the columns of the row, for instance {"text": "..."}',
            do="write every row as an object",
        )
    if "\\ud" in text.lower():  # an escape of half a character: its other half may be missing
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where} holds half a character, a \\uD8xx or \\uDCxx without its other half",
                expected="whole characters",
                do="write the row anew from its source, or remove it",
            ) from None


def _reason(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
