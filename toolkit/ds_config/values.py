"""How a value of a DeepSpeed JSON reads in a message."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

LONGEST = 60
"""Characters of a value that a message shows."""


def show(value: Any) -> str:
    """`value` as it reads in JSON, cut to one short line."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        # Nested deeper than Python recurses, or an integer of more digits than Python prints.
        text = "an integer of thousands of digits" if isinstance(value, int) else "a value nested too deeply to show"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def exact(number: float) -> str:
    """`number` in the fewest digits that tell it from every other: 500000001, 0.0001, 5e-05."""
    if isinstance(number, float) and number.is_integer() and abs(number) < 1e16:
        number = int(number)
    return repr(number)


def listing(names: Iterable[str]) -> str:
    """The names that work, each once."""
    return "one of " + ", ".join(dict.fromkeys(names))
