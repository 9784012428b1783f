"""The second half of an evaluation: one record per held-out example, and metrics of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from toolkit.data.example import Example
from toolkit.models.decoding import Generate

Record = dict[str, Any]
"""What a task says of one example, JSON-able: {"prediction": "...", "reference": "..."}, for instance."""


@runtime_checkable
class Predicting(Protocol):
    """A task that makes records; one without these methods is evaluated by its sums alone, at no cost."""

    def predict(
        self, model: nn.Module, batch: dict[str, Tensor], examples: Sequence[Example], generate: Generate
    ) -> list[Record]:
        """One record per example of `examples`, in their order, fillers included (they are dropped afterwards).

        `batch`, on the device, is what `collate` has made of `examples` (those of a packed sequence follow each other).
        Runs on every rank, without gradients and dropout; every rank must call `model` and `generate` as often as the
        others. `model` computes whole sequences; under a pipeline it looks like the whole model.
        """
        ...

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of all records, which come in data order, each held-out example once. Runs on rank 0."""
        ...
