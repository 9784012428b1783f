"""The bytes of an image or a recording that a row names or holds.

A value is {"bytes": ..., "path": ...} as datasets keeps it (either may be missing), the bytes themselves, or the path of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.data.example import Row
from toolkit.errors import DataError

Result = TypeVar("Result")


class Unreadable(DataError):
    """An image or a recording that cannot be used: data.unreadable says whether that ends the run or costs the example."""


@dataclass(frozen=True)
class Stored:
    """An encoded image or recording, and what messages call it."""

    content: bytes
    name: str

    def encoded(self) -> NDArray[np.uint8]:
        """The bytes as an array, which an example can hold."""
        return np.frombuffer(self.content, np.uint8)


def located(value: Any, folder: Path | None) -> Any:
    """`value` with a path that is not absolute taken as one in `folder`."""
    if folder is None:
        return value
    if isinstance(value, Mapping):
        path = value.get("path")
        # Beside bytes a path is the name the file once had.
        if isinstance(path, str) and value.get("bytes") is None and not Path(path).is_absolute():
            return {**value, "path": str(folder / path)}
        return value
    if isinstance(value, str) and value and not _is_address(value) and not Path(value).is_absolute():
        return str(folder / value)
    return value


def located_in(row: Row, column: str, folder: Path | None) -> Row:
    """`row` with what `column` holds taken from `folder` on, where it has that column."""
    return row if folder is None or column not in row else {**row, column: located(row[column], folder)}


def _is_address(value: str) -> bool:
    return "://" in value or value.startswith("data:")


def stored(value: Any, where: str) -> Stored:
    """The bytes of `value`, found at `where`. Raises DataError for what is none, Unreadable for a file that is not there."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, None)
    if isinstance(value, bytes | bytearray):
        content = bytes(value)
    elif isinstance(value, str):
        path = value
    if isinstance(content, bytes):
        return Stored(content, where if path is None else f"{where} ({path})")
    if not isinstance(path, str) or not path:
        raise DataError(
            f"{where} is {'null' if value is None else f'{value!r:.80}'}",
            expected="the path of a file, or its bytes as datasets keeps them: {'bytes': ..., 'path': ...}",
            do="remove the row, or set the field to the column that holds it",
        )
    if _is_address(path):
        raise DataError(
            f"{where} is the address {path!r:.60}",
            expected="a file on this host: a run must not wait for another host, nor train what that has changed",
            do="download the files, and write their paths",
        )
    return Stored(_read(Path(path), where), path)


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        raise Unreadable(
            f"{where}: {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}",
            expected="a file that is there and may be read",
            do="put it there, or remove the row (data.unreadable='skip' leaves such rows out, and counts them)",
        ) from None


def unreadable(name: str, why: str, expected: str) -> Unreadable:
    """The error for the image or recording called `name`."""
    return Unreadable(
        f"{name} {why}",
        expected=expected,
        do="mend or remove it, or set data.unreadable='skip' to leave such examples out, and count them",
    )


def in_column(value: Any, column: str, field: str) -> Stored:
    """The bytes in `column`, which task.`field` names."""
    return stored(value, f"task.{field}={column!r}")
