"""Check JSON files before a loader sees them, so that an error names the line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NoReturn

from toolkit.errors import DataError


def check_json(path: Path, *, field: str, cache_dir: Path) -> None:
    """Raise DataError, with the line number, unless `path` is JSON lines of objects or one JSON list of objects.

    A file that passed is remembered in `cache_dir` by path, size and time of change, and not read again.
    """
    status = path.stat()
    key = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    passed = cache_dir / "checked" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if passed.exists():
        return
    if _starts_with_a_list(path):
        _check_list(path, field)
    else:
        _check_lines(path, field)
    passed.parent.mkdir(parents=True, exist_ok=True)
    passed.touch()


def _starts_with_a_list(path: Path) -> bool:
    with path.open("rb") as file:
        while block := file.read(4096):
            start = block.removeprefix(b"\xef\xbb\xbf").lstrip()
            if start:
                return start.startswith(b"[")
    return False


def _check_lines(path: Path, field: str) -> None:
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                found = True
                _check_line(stripped, f"{field}={str(path)!r}, line {number:,}")
    if not found:
        raise empty_source(str(path), field)


def _check_line(line: bytes, where: str) -> None:
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except ValueError as error:
        raise DataError(
            f"{where} is not JSON: {_reason(error)}; it starts with {line[:60].decode(errors='replace')!r}",
            expected='one JSON object per line, for instance {"text": "..."}',
            do="repair or remove the line",
        ) from None
    _check_object(row, where)


def _check_list(path: Path, field: str) -> None:
    name = f"{field}={str(path)!r}"
    try:
        rows = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from None
    except ValueError as error:
        line = f", line {error.lineno:,}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{name}{line} is not JSON: {_reason(error)}",
            expected="one list of objects, or one object per line",
            do="repair the file there",
        ) from None
    if not rows:
        raise empty_source(str(path), field)
    for number, row in enumerate(rows, start=1):
        _check_object(row, f"{name}, element {number:,} of the list")


def _check_object(row: object, where: str) -> None:
    if not isinstance(row, dict) or not row:
        kind = "an empty object" if row == {} else f"of type {type(row).__name__}"
        raise DataError(
            f"{where} is {kind}",
            expected='a JSON object with the columns of the row, for instance {"text": "..."}',
            do="write every row as an object",
        )


def empty_source(location: str, field: str) -> DataError:
    """The error for a source without a single row."""
    return DataError(
        f"{field}={location!r} has no rows",
        expected="at least one row",
        do=f"check how the file was written, or point {field} to another one",
    )


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{where} is not UTF-8 text (byte {error.object[error.start]:#04x})",
        expected="UTF-8",
        do="convert the file, for instance with: iconv -f latin1 -t utf-8 OLD > NEW",
    )


def _reason(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
