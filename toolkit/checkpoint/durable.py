"""Files and folders that are either whole or absent, also after a kill or a power cut."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VISIBLE_S = 90.0
"""So long what one host writes may take to be seen on another: NFS remembers for up to a minute that a name was not there."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` so that readers see the old content or the new, never a part."""
    write_text(path, json.JSONEncoder(indent=1).iterencode(value))


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write `pieces` of text to `path` so that readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make the files below `folder`, and their names, durable."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with Path(directory, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(directory))


_AT_CWD, _EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, in one operation of the file system; False where it has none (NFS, for instance)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or a C library without it
        return False
    return bool(rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0)
