"""What Git LFS leaves in the place of a large file that it did not download."""

from __future__ import annotations

from pathlib import Path

BEGINNING = b"version https://git-lfs.github.com/spec/"

LARGEST = 1024
"""Bytes; by the specification a pointer is smaller."""


def is_pointer(file: Path) -> bool:
    """Whether `file` is a pointer and not the content it stands for."""
    if not file.is_file() or file.stat().st_size >= LARGEST:
        return False
    with file.open("rb") as opened:
        return opened.read(len(BEGINNING)) == BEGINNING
