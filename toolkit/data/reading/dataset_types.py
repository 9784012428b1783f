"""Whether something is of a type of the library datasets, asked without importing it.

datasets and pandas take a second to import. Whoever holds an object of theirs has done so; a plan, which reads no data,
never does.
"""

from __future__ import annotations

import sys
from typing import Any


def is_table_of_datasets(rows: Any) -> bool:
    """Whether `rows` are a `datasets.Dataset`: they have a length, and any of them can be had by number."""
    return _is(rows, "Dataset")


def is_list_feature(feature: Any) -> bool:
    """Whether `feature` describes a column of lists."""
    return _is(feature, "List", "LargeList")


def is_class_label(feature: Any) -> bool:
    """Whether `feature` describes a column of numbers that stand for names."""
    return _is(feature, "ClassLabel")


def _is(thing: Any, *names: str) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(thing, tuple(getattr(datasets, name) for name in names))
