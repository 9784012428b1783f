"""Several sources in one field of the recipe, each with a weight: "a.jsonl:2,b.parquet:1".

A weight says how often an epoch passes through a source: 2 is two whole passes, 0.25 a quarter of its sequences, another
one in every epoch, 1.5 a whole pass and half of one. Imports nothing that takes long.
"""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import DataError
from toolkit.recipe.location import at_home


@dataclass(frozen=True)
class Weighted:
    """One source and its weight."""

    location: str
    weight: float = 1.0
    """Passes through it in an epoch."""


def weighted(text: str, field: str) -> list[Weighted]:
    """The sources that `text`, the value of `field`, names; without a weight it is 1.

    What exists under a name with ":" or "," in it is that file: the longest such name counts. Raises DataError for a
    weight that is no number above 0, for a comma with nothing beside it and for a source that is named twice.
    """
    if _exists(text) or not {":", ","} & {*text}:
        return [Weighted(text)]
    words = text.split(",")
    found: list[Weighted] = []
    start = 0
    while start < len(words):
        stops = range(len(words), start, -1)
        known = next(((stop, part) for stop in stops if (part := _known(",".join(words[start:stop]), field))), None)
        stop, part = known or (start + 1, _part(words[start], text, field))
        found.append(part)
        start = stop
    names = [part.location for part in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(
            f"{field}={text!r} names {twice!r} twice",
            expected="each source once",
            do=f"give it the sum of the weights, for instance {twice}:2",
        )
    return found


def only_location(text: str, field: str, why: str) -> str:
    """The one source that `text` names, all of it. Raises DataError, with the reason `why`, for several and for a weight."""
    found = weighted(text, field)
    if len(found) == 1 and found[0].weight == 1.0:
        return found[0].location
    raise DataError(
        f"{field}={text!r}, several sources or a weight", expected=f"one source: {why}", do="name one of them"
    )


def _known(text: str, field: str) -> Weighted | None:
    """The source that `text`, with a weight or without, names if that is there."""
    text = _location(text)
    if _exists(text):
        return Weighted(text)
    location, colon, weight = text.rpartition(":")
    if not colon or "," in weight or not _exists(location):
        return None
    return Weighted(location, _weight(weight, location, field))


def _part(word: str, text: str, field: str) -> Weighted:
    """A source that is no file here: it may be a hub name, a name that `toolkit fetch` knows, or missing."""
    location, colon, weight = word.strip().rpartition(":")
    if not colon or not location or not _is_number(weight):
        location, weight = word.strip(), "1"
    if not location:
        raise DataError(
            f"{field}={text!r} has nothing beside a comma",
            expected="sources with commas between them, such as a.jsonl:2,b.parquet:1",
            do="remove the comma, or write the source that is missing",
        )
    return Weighted(_location(location), _weight(weight, location, field))


def _location(text: str) -> str:
    return at_home(text.strip()) if text.strip() else text


def _weight(text: str, location: str, field: str) -> float:
    if not _is_number(text) or not math.isfinite(float(text)) or float(text) <= 0:
        raise DataError(
            f"{field}: the weight of {location!r} is {text!r}",
            expected="a number above 0: how often an epoch passes through the source, 1 without a weight",
            do=f"write it behind the name, for instance {location}:0.5, or leave the source out",
        )
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _exists(location: str) -> bool:
    """Whether `location` is a file or a folder here, or a pattern of some."""
    if not location.strip():
        return False
    try:
        there = Path(location).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
    has_mark = any(mark in location for mark in "*?[")
    return there or (has_mark and next(glob.iglob(location, recursive=True), None) is not None)  # noqa: PTH207
