"""What sequence classification asks of a kind of label."""

# ruff: noqa: B027 (what a kind may leave as it is does nothing)
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from toolkit.data.example import Row
from toolkit.data.reading.row_names import RowName
from toolkit.errors import RecipeError

Record = dict[str, Any]


class LabelKind(ABC):
    """A kind of label: how it is read, learned and measured. Its `problem_type` is transformers' word for it."""

    problem_type: ClassVar[str]
    new_head = False
    """Whether the output layer starts at random values, whatever the checkpoint has; known after `fit`."""

    def __init__(self, options: Any) -> None:
        self.options = options
        """The task's section, which names the columns of labels."""

    @abstractmethod
    def fit(self, rows: Iterable[Row], checkpoint: Any, fields: Mapping[str, Any], row_name: RowName) -> None:
        """Look once at the training rows; see `toolkit.tasks.base.Task.fit`."""

    def check(self, rows: Iterable[Row], row_name: RowName) -> None:
        """Look once at the held-out rows. Raises DataError where they as a whole cannot be measured on."""

    @abstractmethod
    def remarks(self) -> list[str]:
        """What `fit` decided, a line each."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Fields of the model's config."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able values that decide what `label` returns, beside the options."""

    @abstractmethod
    def columns(self) -> Collection[str]:
        """The columns that hold the label."""

    @abstractmethod
    def label(self, row: Row) -> NDArray[Any]:
        """The label of `row`, [N]: integers where -100 is none, or fp32 where NaN is none."""

    @abstractmethod
    def collate(self, labels: Sequence[NDArray[Any]]) -> torch.Tensor:
        """Labels of a batch, [B] or [B, N]."""

    @abstractmethod
    def shown(self, label: NDArray[Any]) -> str:
        """`label` for a reader."""

    @abstractmethod
    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        """Sum of the losses of the texts with a label, of logits [B, N] in fp32."""

    def sums(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Further sums over the texts with a label."""
        return {}

    def metrics(self, sums: Mapping[str, float], count: float) -> dict[str, float]:
        """Metrics of those sums over `count` texts."""
        return {}

    @abstractmethod
    def told(self, logits: torch.Tensor) -> Any:
        """What the model says by logits [N] on the CPU, JSON-able and as `meant` has it."""

    @abstractmethod
    def meant(self, label: NDArray[Any]) -> Any:
        """`label` as a record has it."""

    @abstractmethod
    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of records."""

    def _refuse_smoothing(self) -> None:
        if self.options.label_smoothing:
            raise RecipeError(
                f"task.label_smoothing={self.options.label_smoothing} with task.problem_type={self.problem_type!r}",
                expected="0.0: probability is spread over classes of which a text has one",
                do="set task.label_smoothing=0.0",
            )
