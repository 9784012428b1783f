"""What an author's `predict` and `score` give, as records and metrics that can be written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import RecipeError, with_type
from toolkit.tasks.base import Record
from toolkit.tasks.custom.arrays import as_array


def checked_records(given: Any, count: int, called: str) -> list[Record]:
    """One record for each of `count` examples; numpy's and torch's numbers become numbers and lists.

    Raises RecipeError for another number of them, and for what JSON does not hold.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != count:
        size = f"{len(given)} records" if isinstance(given, list | tuple) else with_type(given)
        raise RecipeError(
            f"{called} gave {size} for a batch of {count} examples",
            expected=f"a list of {count} records, one of each example, in their order",
            do='return a list of dicts, for instance [{"rating": float(value)} for value in model(batch["x"])]',
        )
    return [_record(record, called) for record in given]


def checked_metrics(given: Any, declared: Mapping[str, Any], called: str, kind: str) -> dict[str, float]:
    """Metrics by the names that the class `kind` has `declared`. Raises RecipeError for others, and for what is no number."""
    if not isinstance(given, Mapping):
        raise RecipeError(
            f"{called} gave {with_type(given)}",
            expected="numbers by name",
            do=f"return a dict of what {kind}.metrics names: {', '.join(declared) or 'nothing as yet'}",
        )
    wrong = sorted(map(str, given.keys() - declared.keys()))
    if wrong:
        raise RecipeError(
            f"{called} gave {wrong[0]!r}, which {kind}.metrics does not name",
            expected=f"those: {', '.join(declared) or 'none'}",
            do='name it there, with "rises" or "falls"',
        )
    return {name: _metric(name, value, called) for name, value in given.items()}


def _metric(name: str, value: Any, called: str) -> float:
    found = as_array(value)
    number = found.item() if isinstance(found, np.ndarray | np.generic) and found.size == 1 else value
    if not isinstance(number, int | float):
        raise RecipeError(
            f"{called} gave {name}={with_type(value)}",
            expected="one number",
            do="average over the examples",
        )
    return float(number)


def _record(record: Any, called: str) -> Record:
    if not isinstance(record, Mapping) or not all(isinstance(name, str) for name in record):
        raise RecipeError(
            f"{called} gave the record {with_type(record)}",
            expected="values by name",
            do='make each record a dict, for instance {"rating": 3.5}',
        )
    return {name: _json(name, value, called) for name, value in record.items()}


def _json(name: str, value: Any, called: str) -> Any:
    value = as_array(value)
    if isinstance(value, np.ndarray | np.generic):
        return _json(name, value.tolist(), called)
    if isinstance(value, Mapping):
        return {str(key): _json(name, part, called) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(name, part, called) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise RecipeError(
        f"{called} gave {name}={with_type(value)}",
        expected="what JSON holds: numbers, texts, truth values, None, and lists and dicts of them",
        do="turn it into one of these",
    )
