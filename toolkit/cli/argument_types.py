"""What the verbs' arguments may be: the types that argparse calls."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from toolkit.recipe.location import path

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmbt]?)", re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def quantity(text: str) -> int:
    """A number as models are named by: 7b, 1.5B, 350m, 7e9, 125000000."""
    match = _QUANTITY.fullmatch(text.strip().lower().replace("_", "").replace(",", ""))
    number = float(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= number < 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 7b, 350m or 7e9")
    return int(number)


def file_path(text: str) -> Path:
    """A path, "~" expanded."""
    try:
        return path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from None
