"""Columns whose integers stand for names that the data set itself holds: ClassLabel features of datasets."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel

from toolkit.data.example import Row


def class_names(rows: Any) -> dict[str, list[str]]:
    """Column -> names by number, for every ClassLabel column of `rows`; empty for rows without such a description."""
    features = getattr(rows, "features", None) or {}
    return {column: list(feature.names) for column, feature in features.items() if isinstance(feature, ClassLabel)}


def with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """`row` with names in place of numbers; a number without a name (-1 means "no class") stays."""

    def name(column: str, value: Any) -> Any:
        known = names[column]
        return known[value] if isinstance(value, int) and 0 <= value < len(known) else value

    return {column: name(column, value) if column in names else value for column, value in row.items()}
