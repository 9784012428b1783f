"""What the verbs' arguments may be: the types that argparse calls."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.recipe.location import path


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def file_path(text: str) -> Path:
    """A path, "~" expanded."""
    try:
        return path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from None
