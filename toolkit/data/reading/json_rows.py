"""Rows of JSON files, kept as the text they are: no type is guessed, a date stays a string."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.data.reading.file_names import plain_name, rewriting
from toolkit.data.reading.json_text import check_row, values
from toolkit.data.reading.text_files import open_lines
from toolkit.errors import DataError, first_few

_OF_A_ROW = ("tools", "functions")
"""Lists of objects that belong to a row. Lists of messages do as well: objects with one of the keys in _OF_A_MESSAGE."""
_OF_A_MESSAGE = ("role", "from")
_COLUMNS = {"text", "label", "prompt", "completion", "messages", "instruction", "input", "output", "question", "answer"}
"""Keys of an object that is a row, or has the values of all rows by their names: no row is named so."""


def json_texts(path: Path) -> Iterator[str]:
    """The JSON text of every row of `path`.

    Rows are objects: one per line, one after the other, in one list, or in the only list of an object around them.
    Raises DataError, with the line, for anything else.
    """
    document = _document(path)
    if document is not None:
        for where, row, text in document.rows:
            check_row(row, where, text)
            yield text
        return
    with open_lines(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                for row, text in values(stripped, path, number):
                    check_row(row, f"{str(path)!r}, line {number:,}", text)
                    yield text


def wrapping_key(path: Path) -> str | None:
    """The key whose list the rows of `path` are, where one object is around them all; else None."""
    document = _document(path) if _form(path) == "object" else None
    return document.key if document is not None else None


def decode(texts: list[str]) -> dict[str, list[Any]]:
    """Rows as columns, which is how datasets wants them; a key that a row lacks is None there."""
    rows = [json.loads(text) for text in texts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


@dataclass(frozen=True)
class _Document:
    """A file that is not one row per line: where each row stands, the row, and its text."""

    rows: Iterator[tuple[str, Any, str]]
    key: str | None = None


def _document(path: Path) -> _Document | None:
    """`path` as one document, None where its lines are rows."""
    if _form(path) == "lines":
        return None
    with open_lines(path) as file:
        found = list(values("".join(file), path))
    if len(found) != 1:
        return _Document((f"{str(path)!r}, object {number:,}", *pair) for number, pair in enumerate(found, start=1))
    value, text = found[0]
    if isinstance(value, list):
        return _Document(_elements(value, path, "the list"))
    key = _key_of_rows(value, path)
    if key is None and "\n" not in text:
        return None
    if key is None:
        return _Document(iter([(repr(str(path)), value, text)]))
    return _Document(_elements(value[key], path, repr(key)), key)


def _form(path: Path) -> Literal["lines", "list", "object"]:
    """How `path` is to be read: by lines, or as a whole. A line that is no JSON is to blame where the next one is."""
    with open_lines(path) as file:
        lines = (stripped for line in file if (stripped := line.strip()))
        first, second = next(lines, ""), next(lines, None)
    if first.startswith("["):
        return "list" if second is None or _line(first, path) is None else "lines"
    if not first.startswith("{"):
        return "lines"
    whole = _line(first, path)
    if whole is not None:
        return "object" if second is None and len(whole) == 1 else "lines"
    return "object" if second is not None and _goes_on(first) and _line(second, path) is None else "lines"


def _line(text: str, path: Path) -> list[Any] | None:
    """The JSON values in one line of `path`; None where it is not JSON by itself."""
    try:
        return [value for value, _ in values(text, path, 1)]
    except DataError:
        return None


def _goes_on(line: str) -> bool:
    """Whether `line` is the beginning of JSON, as far as it goes."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except (ValueError, RecursionError):
        pass
    return False


def _elements(rows: list[Any], path: Path, name: str) -> Iterator[tuple[str, Any, str]]:
    for number, row in enumerate(rows, start=1):
        yield f"{str(path)!r}, element {number:,} of {name}", row, json.dumps(row)


def _key_of_rows(value: dict[str, Any], path: Path) -> str | None:
    """The key of `value`, all that `path` holds, whose list the rows are. None where `value` is itself a row.

    Raises DataError where there is no telling.
    """
    _check_not_keyed(value, path)
    lists = [
        key
        for key, item in value.items()
        if isinstance(item, list) and item and all(isinstance(row, dict) for row in item)
    ]
    if any(name in row for key in lists for row in value[key] for name in _OF_A_MESSAGE):
        return None
    lists = [key for key in lists if key not in _OF_A_ROW]
    is_table = plain_name(path).suffix.lower() == ".json"
    if len(lists) == 1:
        [key] = lists
        columns = {name for row in value[key] for name in row}
        return None if columns & (value.keys() - {key}) else key
    if lists and is_table:
        raise DataError(
            f"{str(path)!r} is one object with several lists of objects: {first_few(lists)}",
            expected="one list of objects, or one object per line",
            do=f"write the one that is meant to a file of its own, for instance: jq '.[{json.dumps(lists[0])}]' {path} > NEW.json",
        )
    if is_table and len(value) > 0 and _are_columns(list(value.values())):
        raise DataError(
            f"{str(path)!r} is one object of columns ({first_few(sorted(value))}), each with the values of all rows",
            expected="one list of objects, or one object per line",
            do="write it by rows: with pandas, to_json(FILE, orient='records', lines=True)",
        )
    return None


def _check_not_keyed(value: dict[str, Any], path: Path) -> None:
    """Raise DataError where `value`, or the only value in it, is an object of rows by a key of each."""
    only = next(iter(value.values()), None) if len(value) == 1 else None
    rows, is_around = (only, True) if isinstance(only, dict) else (value, False)
    if not _COLUMNS.isdisjoint(rows) or not _are_rows(list(rows.values())):
        return
    take = f"json.load(sys.stdin)[{next(iter(value))!r}]" if is_around else "json.load(sys.stdin)"
    script = f"import json, sys; json.dump([*{take}.values()], sys.stdout)"
    unpack, command = rewriting(path, script, ".json")
    raise DataError(
        f"{str(path)!r} is an object of {len(rows):,} rows keyed by {first_few([*rows], 3)}",
        expected="one list of objects, or one object per line",
        do=f"{unpack}write its values as a list: {command}",
    )


def _are_rows(values: list[Any]) -> bool:
    """Whether `values` are several objects of the same form: at least one key is in all, and not as row numbers are."""
    if len(values) < 2 or not all(isinstance(value, dict) and value for value in values):
        return False
    shared = set(values[0]).intersection(*values[1:])
    return bool(shared) and not _are_columns(values) and not (len(values) == 2 and shared & {*_OF_A_MESSAGE})


def _are_columns(columns: list[Any]) -> bool:
    """Whether each of `columns` is a list of values, or an object of them by the row's number, all of one length."""
    if all(isinstance(column, dict) for column in columns):
        return all(column and all(name.isdecimal() for name in column) for column in columns)
    flat = all(isinstance(column, list) and not any(isinstance(item, dict) for item in column) for column in columns)
    return flat and len({len(column) for column in columns}) == 1 and len(columns[0]) > 1
