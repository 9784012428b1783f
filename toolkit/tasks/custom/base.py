"""What the author of a module says of it: how it is built, what it reads, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.recipe.tasks import Direction

Row: TypeAlias = Mapping[str, Any]
Arrays: TypeAlias = dict[str, NDArray[Any]]
"""One example: numbers (arrays without a dimension) and arrays, by name."""
Batch: TypeAlias = dict[str, Tensor]
Figure: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""Of each example [B], a sum over its targets; or sums [B] and, in place of the targets, what each is a sum over [B]."""


class CustomTask(ABC):
    """A module of one's own with its loss. `build` and `loss` are all that it must have.

    The arguments of its constructor are task.arguments: declare the class a dataclass, or give it an `__init__`. It is made
    once on each process, and once more where its export is loaded.
    """

    metrics: ClassVar[Mapping[str, Direction]] = {}
    """What an evaluation measures beside "loss", each with whether it "rises" or "falls" as the module improves."""
    padding: ClassVar[Mapping[str, float]] = {}
    """What fills up shorter arrays in a batch, by their name; 0 for those that are not here."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module, with its weights drawn by torch's own generator, which follows the run's seed.

        Called several times, also without memory for the parameters: they may be filled here, not read.
        """

    def rows(self, split: str) -> Sequence[Row]:
        """The rows of "train", "test" or another split, for data.train="own" and data.evaluation="own".

        The same on every process and at every start: draw with generators that are seeded here.
        """
        raise NotImplementedError

    def encode(self, row: Row) -> Mapping[str, Any]:
        """The example that a row gives: numbers, and arrays or lists of numbers, by name. Kept on disk."""
        return row

    def transform(self, example: Arrays, random: np.random.Generator, *, is_trained: bool) -> Mapping[str, Any]:
        """What is drawn anew whenever `example` is used: hidden tokens, negatives, noise.

        `random` depends on the seed, the pass over the data and the example alone; `is_trained` is False in an evaluation,
        where what is drawn stays the same. Called from several threads at once.
        """
        return example

    def collate(self, examples: Sequence[Arrays]) -> Batch:
        """One batch: numbers as [B], arrays of equal shapes stacked, others filled up at their ends; see `padding`."""
        return {name: self.stacked(name, [example[name] for example in examples]) for name in examples[0]}

    def stacked(self, name: str, values: Sequence[NDArray[Any]]) -> Tensor:
        """The arrays called `name` of all examples of a batch, [B, ...]."""
        shape = tuple(np.max([value.shape for value in values], axis=0)) if values[0].ndim else ()
        if all(value.shape == shape for value in values):
            return torch.from_numpy(np.stack(values))
        whole = np.full((len(values), *map(int, shape)), self.padding.get(name, 0), values[0].dtype)
        for index, value in enumerate(values):
            whole[index][tuple(map(slice, value.shape))] = value
        return torch.from_numpy(whole)

    def targets(self, batch: Batch) -> Tensor:
        """How many targets each example of `batch` has, [B]: what the loss is averaged over. One each unless said otherwise."""
        return torch.ones(len(next(iter(batch.values()))))

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each example, [B]: summed over its targets, not averaged over them or over the batch.

        `model` is what `build` has made, or a stand-in for it: call it, do not look inside.
        """

    def measure(self, model: nn.Module, batch: Batch) -> Mapping[str, Figure]:
        """What else there is to know of each example in an evaluation, by name; averaged over all targets of all examples."""
        return {}

    def figures(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """The metrics, by the names in `metrics`, of the means of "loss" and of what `measure` gave."""
        return {name: means[name] for name in self.metrics if name in means}

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Mapping[str, Any]]:
        """What the module says of each example, JSON-able, for `score`; kept in the run's folder."""
        raise NotImplementedError

    def score(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
        """Metrics, by the names in `metrics`, of what `predict` said of all held-out examples, in their order."""
        raise NotImplementedError
