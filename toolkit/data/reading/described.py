"""Rows as the data set's own description means them: names for the numbers of classes, and no null that only Arrow added.

The objects in a column of an Arrow table (Parquet, a saved data set, the hub) have one set of keys: a key that some row
uses is null in every other. Such a null cannot be told from one that was written, so all of them are left out: tool
arguments {"a": 1} would be learned as {"a": 1, "b": null}. A null that is meant is kept as JSON text of the object, and
in JSON files, whose rows are read as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from toolkit.data.example import Row
from toolkit.data.reading.class_names import class_names, with_names
from toolkit.data.reading.dataset_types import is_list_feature

Result = TypeVar("Result")


def as_described(encode: Callable[[Row], Result], rows: Any) -> Callable[[Row], Result]:
    """`encode`, or what else reads a row, for rows of the source `rows`, which describes them."""
    described = _Description(rows)
    if described.is_empty:
        return encode

    def seen(row: Row) -> Result:
        return encode(described.of(row))

    return seen


def described_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """`rows` as their source describes them."""
    described = _Description(rows)
    return iter(rows) if described.is_empty else map(described.of, rows)


def leaves_out_nulls(rows: Iterable[Row], count: int) -> bool:
    """Whether `described_rows` leaves a null out of the arguments of a tool call in the first `count` of `rows`, or of
    those of one of several sources."""
    if (parts := getattr(rows, "parts", None)) is not None:
        return any(leaves_out_nulls(part, count) for part in parts)
    structs = _Description(rows).structs
    first = islice(rows, count) if structs else ()
    return any(_has_null_argument(row.get(column)) for row in first for column in structs)


def _has_null_argument(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_null_argument, value))
    if not isinstance(value, dict):
        return False
    return _holds_null(value.get("arguments")) or any(map(_has_null_argument, value.values()))


def _holds_null(value: Any) -> bool:
    """Whether an object in `value` has a key that is null."""
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return isinstance(value, dict) and any(inner is None or _holds_null(inner) for inner in value.values())


class _Description:
    def __init__(self, rows: Any) -> None:
        features = getattr(rows, "features", None) or {}
        self._names = class_names(rows)
        self.structs = {column: feature for column, feature in features.items() if _has_struct(feature)}

    @property
    def is_empty(self) -> bool:
        return not self._names and not self.structs

    def of(self, row: Row) -> Row:
        if self.structs:
            row = {
                column: _without_nulls(value, self.structs[column]) if column in self.structs else value
                for column, value in row.items()
            }
        return with_names(row, self._names) if self._names else row


def _has_struct(feature: Any) -> bool:
    if is_list_feature(feature):
        return _has_struct(feature.feature)
    return isinstance(feature, dict)


def _without_nulls(value: Any, feature: Any) -> Any:
    if is_list_feature(feature) and isinstance(value, list):
        return [_without_nulls(element, feature.feature) for element in value] if _has_struct(feature) else value
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _without_nulls(inner, feature.get(key)) for key, inner in value.items() if inner is not None}
    return value
