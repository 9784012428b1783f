"""Git LFS pointers: what a clone without git-lfs leaves in the place of large files."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/v1"
LARGEST_POINTER = 1024
"""Bytes; by the specification a pointer is smaller."""


def is_pointer(file: Path) -> bool:
    """Whether `file` is a Git LFS pointer and not the content it stands for."""
    try:
        if not file.is_file() or file.stat().st_size >= LARGEST_POINTER:
            return False
        with file.open("rb") as opened:
            return opened.read(len(POINTER)) == POINTER
    except OSError:
        return False
