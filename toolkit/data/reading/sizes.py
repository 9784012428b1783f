"""How large a source is, where that can be told before it is opened."""

from __future__ import annotations

import glob
from pathlib import Path

from toolkit.data.reading.find_files import looks_local

STREAMED_BYTES = 64 * 2**20
"""Larger files are not read to their end where some of their rows will do."""


def num_bytes(place: str) -> int | None:
    """Size of the files at `place`; None for what is not here."""
    path = Path(place)
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if any(mark in place for mark in "*?["):
        return sum(Path(file).stat().st_size for file in glob.glob(place, recursive=True))  # noqa: PTH207
    return 0 if looks_local(place) else None
