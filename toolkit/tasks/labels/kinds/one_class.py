"""One class per text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.data.example import IGNORED, Row
from toolkit.data.reading.class_names import class_names
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError
from toolkit.models.config import parsed
from toolkit.tasks.labels.classes import MOST_CLASSES, Classes, head_of, in_order, match, numbered
from toolkit.tasks.labels.kinds.base import LabelKind, Record
from toolkit.tasks.labels.values import NO_LABEL, NOT_A_NAME, counted, label_of, labels_of, unlabelled
from toolkit.tasks.metrics.labels import class_scores


class OneClass(LabelKind):
    """A name or an integer. Classes are those of the checkpoint's own head where it has them, else the data's, sorted."""

    problem_type = "single_label_classification"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.mapping = Classes(())
        self.classes: list[str] = []
        self.doubtful: dict[str, str] = {}
        self.majority = 0
        self.checkpoint: Any = None

    def fit(self, rows: Iterable[Row], checkpoint: Any, fields: Mapping[str, Any], row_name: RowName) -> None:
        """Find the classes, those of the checkpoint's head where it has one that fits, and the most frequent one."""
        column = self.options.label_field
        classes = class_names(rows).get(column)
        counts = counted(labels_of(rows, column, row_name), column, row_name, signs=classes is None)
        if len(counts) < 2 or len(counts) > MOST_CLASSES:
            found = f": {next(iter(counts))!r}" if len(counts) == 1 else ""
            raise DataError(
                f"task.label_field={column!r} has {len(counts)} distinct values{found}",
                expected=f"between 2 and {MOST_CLASSES} classes",
                do="check task.label_field and the training rows",
            )
        self.checkpoint = checkpoint
        given = {name: parsed(value) for name, value in fields.items()}
        self.mapping = match(classes or in_order(counts), head_of(checkpoint), given)
        self.classes, self.new_head = list(self.mapping.names), self.mapping.new_head
        self.majority = self._index(max(counts, key=lambda name: counts[name]))
        are_told = classes is not None or not self.mapping.new_head  # by the data set itself, or the checkpoint
        doubtful = [] if are_told else [name for name in counts if name.strip().casefold() in NOT_A_NAME]
        self.doubtful = {name: f"{counts[name]:,} of {counts.total():,} rows" for name in doubtful}

    def check(self, rows: Iterable[Row], row_name: RowName) -> None:
        """Raise DataError for held-out rows without labels."""
        column = self.options.label_field
        if self.mapping.index(NO_LABEL) is None:
            counted(labels_of(rows, column, row_name), column, row_name)

    def _index(self, label: str) -> int:
        if label == NO_LABEL and self.mapping.index(label) is None:
            raise unlabelled(self.options.label_field, "")
        return self.mapping.known(label, f"{self.options.label_field}={label!r}")

    def remarks(self) -> list[str]:
        """The classes, what the checkpoint's head becomes, and names that may be meant for one."""
        found = [self.mapping.remark or f"classes: {numbered(self.classes)}"]
        found += self.mapping.spellings()
        for name, share in self.doubtful.items():
            found.append(
                f"note: {name!r} is a class of its own, in {share}; if it stands for 'no label', remove those rows"
            )
        before = getattr(self.checkpoint, "problem_type", None)
        if not self.new_head and before not in (None, self.problem_type):
            found.append(f"the checkpoint's problem_type {before} becomes {self.problem_type}: one class per text")
        return found

    def config(self) -> dict[str, Any]:
        """The classes, so that the export knows their names."""
        return {**self.mapping.config(), "problem_type": self.problem_type}

    def describe(self) -> dict[str, Any]:
        """The classes."""
        return self.mapping.describe()

    def columns(self) -> Collection[str]:
        """The one with the class."""
        return (self.options.label_field,)

    def label(self, row: Row) -> NDArray[Any]:
        """The number of the class, [1]."""
        return np.array([self._index(label_of(row, self.options.label_field))], np.int32)

    def collate(self, labels: Sequence[NDArray[Any]]) -> torch.Tensor:
        """[B]."""
        return torch.from_numpy(np.concatenate(labels).astype(np.int64))

    def shown(self, label: NDArray[Any]) -> str:
        """The number of the class."""
        return str(label[0])

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        """Cross-entropies."""
        return nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )

    def sums(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Correct answers, and how often the majority class would have been right."""
        right = (logits.argmax(-1) == labels) & (labels != IGNORED)
        return {"correct": float(right.sum()), "majority": float((labels == self.majority).sum())}

    def metrics(self, sums: Mapping[str, float], count: float) -> dict[str, float]:
        """accuracy, and that of always answering the most frequent training class."""
        return {"accuracy": sums["correct"] / count, "majority_accuracy": sums["majority"] / count}

    def told(self, logits: torch.Tensor) -> str:
        """The name of the likeliest class."""
        return self.classes[int(logits.argmax())]

    def meant(self, label: NDArray[Any]) -> str:
        """The name of the class."""
        return self.classes[max(0, int(label[0]))]  # a filler has none, and is dropped

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """f1_macro and mcc."""
        found = class_scores(records)
        return {name: found[name] for name in ("f1_macro", "mcc")}
