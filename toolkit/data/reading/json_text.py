"""JSON values out of text, with the cause where the text is not JSON, and where a value cannot be a row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from toolkit.errors import DataError

DEEPEST = 100
"""Levels of lists and objects in a row: far more than any data has, far less than Python's own limit."""

_SPACE = re.compile(r"\s*")
_ROW = 'a JSON object with the columns of the row, for instance {"text": "..."}'


class _Refused(ValueError):
    """What the decoder takes, and would change quietly."""


def values(text: str, path: Path, first_line: int | None = None) -> Iterator[tuple[Any, str]]:
    """Each JSON value in `text`, one after the other, and the text of it.

    `text` is line `first_line` of `path`, or all of it. Raises DataError for what is not JSON, for a key that is twice in
    an object, and for numbers that Python cannot hold.
    """
    place = _SPACE.match(text, 0).end()  # type: ignore[union-attr]  # matches anywhere
    while place < len(text):
        try:
            value, end = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            line = error.lineno if first_line is None else first_line
            what = f"line {line:,} is not JSON: {error.msg} at column {error.colno}{_hint(text, error.pos)}"
            raise _bad(path, what, text, first_line) from None
        except ValueError as error:
            where = "" if first_line is None else f"line {first_line:,} "
            said = str(error) if isinstance(error, _Refused) else "a number of more than 4,300 digits"
            raise _bad(path, f"{where}is not JSON: {said}", text, first_line) from None
        except RecursionError:
            where = repr(str(path)) if first_line is None else f"{str(path)!r}, line {first_line:,}"
            raise _too_deep(where) from None
        yield value, text[place:end]
        place = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def check_row(row: object, where: str, text: str) -> None:
    """Raise DataError unless `row`, which `text` stands for, is an object with something in it that can be encoded."""
    if not isinstance(row, dict) or not row:
        kind = "an empty object" if row == {} else f"of type {type(row).__name__}"
        is_chat = isinstance(row, list) and row and isinstance(row[0], dict)
        raise DataError(
            f"{where} is {kind}",
            expected=_ROW,
            do="write every row as an object" + (', {"messages": [...]} for a conversation' if is_chat else ""),
        )
    if text.count("{") + text.count("[") > DEEPEST and _depth(row) > DEEPEST:
        raise _too_deep(where)
    if "\\ud" in text.lower():  # an escape of half a character: its other half may be missing
        for name, value in row.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{where} holds half a character in {json.dumps(name)}, a \\uD8xx or \\uDCxx without its other half",
                    expected="whole characters",
                    do="write the row anew from its source, or remove it",
                ) from None


def _bad(path: Path, what: str, text: str, first_line: int | None) -> DataError:
    separator = ", " if what.startswith("line ") else " "
    if first_line is None:
        return DataError(
            f"{str(path)!r}{separator}{what}",
            expected="one list of objects, or one object per line",
            do="repair the file there",
        )
    return DataError(
        f"{str(path)!r}{separator}{what}; it starts with {text[:60]!r}",
        expected='one JSON object per line, for instance {"text": "..."}',
        do="repair or remove the line",
    )


def _too_deep(where: str) -> DataError:
    return DataError(
        f"{where} has lists and objects nested more than {DEEPEST} levels deep",
        expected=f"rows of at most {DEEPEST} levels",
        do="write what is that deep as text, or remove the row",
    )


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _hint(text: str, place: int) -> str:
    """What is likely meant by the text at `place`, where no JSON value goes on."""
    rest, before = text[place:], text[:place].rstrip()
    if not rest.strip():
        return " (it ends there, in the middle of a value)"
    for start, hint in _HINTS:
        if rest.startswith(start):
            return f" ({hint})"
    if rest[0] in "]}" and before.endswith(","):
        return f" (a comma before the closing {rest[0]})"
    if rest[0] == "," and before.endswith("}"):
        return " (a comma after the object: lines have none, a list has brackets around it)"
    if rest[0] < " ":
        return f" (the control character U+{ord(rest[0]):04X} itself; in a string JSON has \\u{ord(rest[0]):04x})"
    return ""


_HINTS = (
    ("'", "JSON has double quotes; single ones are Python's notation"),
    ("None", "None is Python's notation, JSON has null"),
    ("True", "True is Python's notation, JSON has true"),
    ("False", "False is Python's notation, JSON has false"),
    ("//", "JSON has no comments"),
    ("#", "JSON has no comments"),
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Refused(f"the key {next(name for name in names if names.count(name) > 1)!r} is twice in one object")
    return found


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise _Refused(f"the number {digits[:40]} is larger than any that can be held")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
