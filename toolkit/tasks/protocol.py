"""What every task provides. The loop, the engines and the checkpoints know no more of a task than this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from toolkit.data.example import Example, Row
from toolkit.data.forms.recognised import Recognised
from toolkit.data.reading.row_names import RowName, plain_names
from toolkit.recipe import Data
from toolkit.recipe import Task as Options

Batch = dict[str, torch.Tensor]
Sums = dict[str, float]
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
TRAINED = plain_names("data.train")


class Task(Protocol):
    """Examples -> features, batches, loss, metrics."""

    auto_class: Any
    """transformers' auto class that loads the right head."""
    can_pack: bool
    """Whether several examples may share one sequence."""
    is_causal: bool
    """Whether a token may see only those before it; the model is then asked whether it keeps to that."""
    reads_padding: bool
    """Whether the model itself looks for padding tokens, so that its config must name them."""

    def __init__(self, options: Options, data: Data, tokenizer: PreTrainedTokenizerBase) -> None: ...

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Look once at the training rows, before any is encoded (to find the classes, for instance).

        `checkpoint` is the config of the checkpoint whose weights are loaded, None for a model from scratch; `fields`
        are those of its config that the recipe sets; `row_name` is what messages call a row.
        """

    def check(self, rows: Iterable[Row], row_name: RowName) -> None:
        """Look once at the held-out rows, after `fit`. Raises DataError where they as a whole cannot be measured on."""

    @property
    def new_head(self) -> bool:
        """Whether the layer whose shape follows from num_labels starts at random values, whatever the checkpoint has."""
        ...

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """Lines to say about how the training rows, which `row_name` names, are read, and about what `fit` decided."""
        ...

    def config_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that follow from the data."""
        ...

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...] | None:
        """The tokens that these raw rows train as the end of an answer; None for a task that generates nothing."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able values that change what `encode` returns; part of the prepared data's identity."""
        ...

    def encode(self, row: Row) -> list[Example]:
        """Examples of one raw row. Raises DataError for a row it cannot use."""
        ...

    def columns(self, row: Row) -> Collection[str]:
        """The columns of `row`, one that `encode` takes, that it reads; the others have no effect."""
        ...

    def recognised(self, row: Row) -> Recognised | None:
        """As which format `row`, one that `encode` takes, is read; None where a task knows only one."""
        ...

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """One micro-batch; each inner list is one sequence, of one example or a pack."""
        ...

    @property
    def split(self) -> Callable[[Batch, int, int], Batch] | None:
        """(batch, index, count) -> part `index` of `count` of every sequence in `batch`; targets stay with the
        positions that predict them. None: a sequence cannot be cut, nor can its model be cut into pipeline stages."""
        ...

    @property
    def auxiliary(self) -> Callable[[], torch.Tensor | float] | None:
        """Sum, since its last call, of what `loss` returned beside the losses of the targets; None: nothing is ever added."""
        ...

    def count(self, batch: Batch) -> int:
        """Targets in `batch`, which lies on the CPU: what the loss is averaged over."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Change the loaded model before DeepSpeed sees it: no new parameters, nothing in its config, which is saved already."""

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> torch.Tensor:
        """Sum of the losses over the targets of `batch`, and auxiliary losses, 0-dim fp32. The caller multiplies its gradient by `gradient_scale`."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Sums over the targets of `batch` that `metrics` turns into metrics."""
        ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a whole evaluation; always with "loss"."""
        ...

    def sample(self, model: nn.Module) -> str | None:
        """Something to look at: the model's answer to task.sample_prompt, or None."""
        ...
