"""What a value of the wrong type was certainly meant to be: "true", "16", 1 for true, 16.0 for an integer, "Linear"."""

from __future__ import annotations

import json
import re
from typing import Any

from toolkit.ds_config.schema_keys import Key

NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
LONGEST = 40


def meant(key: Key, value: Any) -> Any:
    """The value that `key` accepts and that `value` can only have been meant to be; None where that is not certain."""
    found = [_meant(key, item) for item in value] if isinstance(value, list) else _meant(key, value)
    return found if found is not None and key.accepts(found) else None


def _meant(key: Key, value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip()[:LONGEST]
        choices = [choice for choice in key.choices if isinstance(choice, str) and choice.lower() == word.lower()]
        if len(choices) == 1:
            return choices[0]
        if key.kind == "bool":
            return {"true": True, "false": False}.get(word.lower())
        if key.kind in ("text", "texts") or not NUMBER.fullmatch(word):
            return None
        value = _number(word)
    if key.kind == "bool" and type(value) is int and value in (0, 1):
        return bool(value)
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if key.kind == "int" and whole else value


def _number(word: str) -> float:
    """An integer where it is written as one."""
    try:
        number: float = json.loads(word)
    except ValueError:  # +1, 1., .5
        number = float(word)
    return number
