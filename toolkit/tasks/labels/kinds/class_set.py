"""Any number of classes per text: a list of names, or a column of 0 and 1 for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.data.example import Row
from toolkit.data.reading.class_names import class_names
from toolkit.data.reading.described import described_rows
from toolkit.data.reading.row_names import RowName, named
from toolkit.errors import DataError, plural
from toolkit.models.config import parsed
from toolkit.tasks.columns import value_of
from toolkit.tasks.labels.classes import MOST_CLASSES, Classes, head_of, in_order, match, numbered
from toolkit.tasks.labels.kinds.base import LabelKind, Record
from toolkit.tasks.metrics.labels import class_set_scores

FLAGS = {"0": 0.0, "1": 1.0, "False": 0.0, "True": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}


class ClassSet(LabelKind):
    """A text may have none of the classes, one, or several; a class is told where its probability is above one half."""

    problem_type = "multi_label_classification"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.mapping = Classes(())
        self.classes: list[str] = []
        self.none = ""

    def fit(self, rows: Iterable[Row], checkpoint: Any, fields: Mapping[str, Any], row_name: RowName) -> None:
        """Find the classes, those of the checkpoint's head where it has one that fits."""
        self._refuse_smoothing()
        counts: Counter[str] = Counter()
        total = without = 0
        for total, row in enumerate(described_rows(rows), start=1):
            try:
                found = self._names(row)
            except DataError as error:
                raise named(error, row_name(total)) from None
            counts.update(found)
            without += not found
        given = self.options.label_fields or class_names(rows).get(self.options.label_field)
        labels = list(given) if given and set(counts) <= set(given) else in_order(counts)
        if not counts or not 1 < len(labels) <= MOST_CLASSES:
            raise DataError(
                f"{self._where} {'have' if self.options.label_fields else 'has'} "
                f"{plural(len(labels) if counts else 0, 'class', 'classes')} that texts are of",
                expected=f"between 2 and {MOST_CLASSES} classes",
                do="check the labels of the training rows",
            )
        self.mapping = match(labels, head_of(checkpoint), {name: parsed(value) for name, value in fields.items()})
        self.classes, self.new_head = list(self.mapping.names), self.mapping.new_head
        self.none = f"; {without:,} of {total:,} rows have none of them" if without else ""

    @property
    def _where(self) -> str:
        fields = self.options.label_fields
        return f"task.label_fields={fields!r}" if fields else f"task.label_field={self.options.label_field!r}"

    def _names(self, row: Row) -> list[str]:
        if self.options.label_fields:
            return [column for column in self.options.label_fields if self._flag(row, column)]
        column = self.options.label_field
        value = value_of(row, column, "label_field", "a list of classes")
        if not isinstance(value, list | tuple):
            raise DataError(
                f"task.label_field={column!r} gives {value!r:.80}, with task.problem_type={self.problem_type!r}",
                expected="a list of the text's classes: names or integers; an empty list for none",
                do="write a list in every row, or set task.problem_type='single_label_classification'",
            )
        for name in value:
            if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
                raise DataError(
                    f"task.label_field={column!r} has {name!r:.60} in its list",
                    expected="names or integers",
                    do="write each class as a name or an integer",
                )
        names = [str(name) for name in value]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"task.label_field={column!r} gives {value!r:.80}, with {twice[0]!r} twice",
                expected="each class of a text once",
                do="name the classes that the text has; 0 and 1 for each class go into columns of their own "
                "(task.label_fields)",
            )
        return names

    def _flag(self, row: Row, column: str) -> bool:
        value = value_of(row, column, "label_fields", "0 or 1 in a column for each class")
        if str(value) not in FLAGS:
            raise DataError(
                f"{column!r} of task.label_fields is {value!r:.60}",
                expected="0 or 1 (true or false): whether the text is of this class",
                do="correct the row, or remove it",
            )
        return bool(FLAGS[str(value)])

    def remarks(self) -> list[str]:
        """The classes, and that there may be several."""
        found = [
            f"{self.mapping.remark or f'classes: {numbered(self.classes)}'}; any number of them per text{self.none}"
        ]
        return found + self.mapping.spellings()

    def config(self) -> dict[str, Any]:
        """The classes, so that the export knows their names, and that each has a probability of its own."""
        return {**self.mapping.config(), "problem_type": self.problem_type}

    def describe(self) -> dict[str, Any]:
        """The classes."""
        return self.mapping.describe()

    def columns(self) -> Collection[str]:
        """The list, or a column for each class."""
        return self.options.label_fields or (self.options.label_field,)

    def label(self, row: Row) -> NDArray[Any]:
        """1 for each class that the text has, 0 for the others, [classes]."""
        flags = np.zeros(len(self.classes), np.float32)
        for name in self._names(row):
            flags[self.mapping.known(name, f"{self._where} has {name!r}, which", "classes among")] = 1.0
        return flags

    def collate(self, labels: Sequence[NDArray[Any]]) -> torch.Tensor:
        """[B, classes]."""
        return torch.from_numpy(np.stack(labels))

    def shown(self, label: NDArray[Any]) -> str:
        """The names of the classes."""
        return ", ".join(self.meant(label)) or "none"

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        """Binary cross-entropies, of a text the mean over the classes."""
        real = ~labels[:, 0].isnan()
        each = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
        return torch.where(real, each.mean(-1), 0.0).sum()

    def told(self, logits: torch.Tensor) -> list[str]:
        """The names of the classes with a probability above one half."""
        return [name for name, logit in zip(self.classes, logits.tolist(), strict=True) if logit > 0.0]

    def meant(self, label: NDArray[Any]) -> list[str]:
        """The names of the classes."""
        return [name for name, flag in zip(self.classes, label.tolist(), strict=True) if flag == 1.0]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """accuracy (of whole sets), f1_micro and f1_macro."""
        return class_set_scores(records, classes=self.classes)
