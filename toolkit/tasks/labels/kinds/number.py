"""A number per text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.data.example import Row
from toolkit.data.reading.row_names import RowName, named
from toolkit.errors import DataError
from toolkit.tasks.columns import value_of
from toolkit.tasks.labels.classes import head_of
from toolkit.tasks.labels.kinds.base import LabelKind, Record
from toolkit.tasks.metrics.labels import number_scores


class Number(LabelKind):
    """The model's one output is the number itself; what is learned is its squared error."""

    problem_type = "regression"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.mean = 0.0
        self.spread = 0.0
        self.remark = ""

    def fit(self, rows: Iterable[Row], checkpoint: Any, fields: Mapping[str, Any], row_name: RowName) -> None:
        """Find mean and spread, and whether the checkpoint's head has one output."""
        self._refuse_smoothing()
        values = []
        for number, row in enumerate(rows, start=1):
            try:
                values.append(self._value(row))
            except DataError as error:
                raise named(error, row_name(number)) from None
        if len(set(values)) < 2:
            raise DataError(
                f"task.label_field={self.options.label_field!r} is {values[0] if values else 'nothing'} in all rows",
                expected="numbers that differ",
                do="check task.label_field and the training rows",
            )
        self.mean, self.spread = float(np.mean(values)), float(np.std(values))
        head = head_of(checkpoint)
        self.new_head = head is not None and head.size != 1
        self.remark = f"; new head: one output instead of {head.size}" if head is not None and self.new_head else ""

    def _value(self, row: Row) -> float:
        column = self.options.label_field
        value = value_of(row, column, "label_field", "a number")
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found):
            raise DataError(
                f"task.label_field={column!r} is {value!r:.60}, with task.problem_type='regression'",
                expected="a finite number in every row",
                do="correct the row, or remove it",
            )
        return found

    def remarks(self) -> list[str]:
        """That numbers are learned, and which."""
        column = self.options.label_field
        return [
            f"task.label_field={column!r} holds numbers (mean {self.mean:.4g}, standard deviation {self.spread:.4g}), which "
            f"are learned as they are{self.remark}"
        ]

    def config(self) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1, "problem_type": self.problem_type}

    def describe(self) -> dict[str, Any]:
        """Nothing beside the options."""
        return {}

    def columns(self) -> Collection[str]:
        """The one with the number."""
        return (self.options.label_field,)

    def label(self, row: Row) -> NDArray[Any]:
        """The number, [1]."""
        return np.array([self._value(row)], np.float32)

    def collate(self, labels: Sequence[NDArray[Any]]) -> torch.Tensor:
        """[B]."""
        return torch.from_numpy(np.concatenate(labels))

    def shown(self, label: NDArray[Any]) -> str:
        """The number."""
        return f"{label[0]:g}"

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        """Squared errors."""
        real = ~labels.isnan()
        return torch.where(real, torch.square(logits[:, 0] - labels.nan_to_num()), 0.0).sum()

    def told(self, logits: torch.Tensor) -> float:
        """The output."""
        return float(logits[0])

    def meant(self, label: NDArray[Any]) -> float:
        """The number."""
        return float(label[0])

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """pearson and spearman."""
        found = number_scores(records)
        return {name: found[name] for name in ("pearson", "spearman")}
