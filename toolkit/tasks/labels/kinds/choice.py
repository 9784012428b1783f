"""Which kind of label a data set has: what the recipe says, or else what all rows show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from toolkit.data.example import Row
from toolkit.data.reading.class_names import class_names
from toolkit.recipe import SequenceClassification
from toolkit.tasks.columns import in_column
from toolkit.tasks.labels.kinds.base import LabelKind
from toolkit.tasks.labels.kinds.class_set import ClassSet
from toolkit.tasks.labels.kinds.number import Number
from toolkit.tasks.labels.kinds.one_class import OneClass
from toolkit.tasks.labels.values import is_fraction

KINDS: dict[str, type[LabelKind]] = {kind.problem_type: kind for kind in (OneClass, ClassSet, Number)}


def kind_of(options: SequenceClassification, rows: Iterable[Row]) -> LabelKind:
    """The kind of the labels of `rows`, before anything of them is checked.

    Several classes where the first label is a list. Numbers where every label is one with a fraction and some fraction is
    not zero: whole numbers with a point are integers that a program has spoilt. Else one class.
    """
    if options.problem_type != "auto":
        return KINDS[options.problem_type](options)
    if options.label_fields:
        return ClassSet(options)
    labels = _labels(options, rows)
    first = next(labels, None)
    if isinstance(first, list | tuple):
        return ClassSet(options)
    is_number = _is_fraction(first) and options.label_field not in class_names(rows)
    return Number(options) if is_number and _are_numbers(chain([first], labels)) else OneClass(options)


def _labels(options: SequenceClassification, rows: Iterable[Row]) -> Iterator[Any]:
    return (row.get(options.label_field) for row in in_column(rows, options.label_field))


def _is_fraction(label: Any) -> bool:
    return isinstance(label, float) or is_fraction(label)


def _are_numbers(labels: Iterator[Any]) -> bool:
    has_fraction = False
    for label in labels:
        if not _is_fraction(label):
            return False
        value = float(label)
        has_fraction = has_fraction or (math.isfinite(value) and not value.is_integer())
    return has_fraction
