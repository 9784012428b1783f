"""Columns whose integers stand for names that the data set itself holds: ClassLabel features of datasets, also in lists."""

from __future__ import annotations

from typing import Any

from toolkit.data.example import Row
from toolkit.data.reading.dataset_types import is_class_label, is_list_feature


def class_names(rows: Any) -> dict[str, list[str]]:
    """Column -> names by number, for every column of ClassLabel, or of lists of it; empty for rows without such a description."""
    features = getattr(rows, "features", None) or {}
    kinds = {column: _inner(feature) for column, feature in features.items()}
    return {column: list(kind.names) for column, kind in kinds.items() if is_class_label(kind)}


def _inner(feature: Any) -> Any:
    return feature.feature if is_list_feature(feature) else feature


def with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """`row` with names in place of numbers; a number without a name (-1 means "no class") stays."""

    def name(known: list[str], value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [name(known, inner) for inner in value]
        return known[value] if isinstance(value, int) and 0 <= value < len(known) else value

    return {column: name(names[column], value) if column in names else value for column, value in row.items()}
