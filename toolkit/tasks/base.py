"""What every task provides. The loop, the engines and the checkpoints know no more of a task than this.

A task overrides what it needs: `encode`, `collate`, `loss`, `evaluate` and `metrics` at least (docs/adding.md).
"""

# ruff: noqa: B027 (what a task may leave as it is does nothing)
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from toolkit.data import tokens
from toolkit.data.example import Example, Row, Sequences
from toolkit.data.forms.recognised import Recognised
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.row_names import RowName, plain_names
from toolkit.models.decoding import Generate
from toolkit.models.loading import load_tokenizer
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import Model
from toolkit.recipe import Task as Options

Batch = dict[str, torch.Tensor]
Sums = dict[str, float]
Record = dict[str, Any]
"""What a task says of one held-out example, JSON-able: {"prediction": "...", "reference": "..."}, for instance."""
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
TRAINED = plain_names("data.train")


@dataclass(frozen=True)
class Loss:
    """What one micro-batch gives."""

    total: torch.Tensor
    """Sum of the losses over the batch's targets, 0-dim fp32."""
    sums: Mapping[str, torch.Tensor | float] = field(default_factory=dict)
    """Further sums over the targets, 0-dim, by the names of Task.logged: each step logs their means over the global batch."""
    added: torch.Tensor | float = 0.0
    """What is trained besides, such as a loss that balances experts: a sum that is logged apart, as aux_loss."""

    @property
    def trained(self) -> torch.Tensor:
        """What the gradient is taken of."""
        return self.total + self.added


class Task(ABC):
    """Examples -> features, batches, loss, metrics."""

    auto_class: ClassVar[Any]
    """transformers' auto class that loads the right head, or what stands in its place."""
    can_pack: ClassVar[bool] = False
    """Whether several examples may share one sequence."""
    is_causal: ClassVar[bool] = False
    """Whether a token may see only those before it; the model is then asked whether it keeps to that."""
    reads_padding: ClassVar[bool] = False
    """Whether the model itself looks for padding tokens, so that its config must name them."""
    answers: ClassVar[frozenset[str]] = frozenset({"labels"})
    """Entries of a batch that the loss alone reads."""
    logged: ClassVar[tuple[str, ...]] = ()
    """Names in Loss.sums."""
    surveys: ClassVar[bool] = False
    """Whether the loss needs to know something of the whole global batch; see `survey`."""
    looks: ClassVar[bool] = False
    """Whether held-out figures are those of all examples together: `look` at each, then `tally`."""
    tells_at_once: ClassVar[bool] = False
    """Whether `told` gives the sums and the records of an evaluation by one forward pass."""
    transforms: ClassVar[bool] = False
    """Whether `transform` does anything."""
    sourced: ClassVar[frozenset[str]] = frozenset()
    """Arrays (bytes of images, of sound) that are not kept with the prepared examples: `source` reads them again whenever
    an example is wanted. A row of such a task gives one example, and `examine` looks at each when it is prepared."""
    provenance: ClassVar[frozenset[str]] = frozenset()
    """Of those, the arrays that say where an example comes from (the name of a file), and not what it is: a copy of the data
    elsewhere is the same data."""
    may_lack_head: ClassVar[bool] = False
    """Whether weights outside the base model are drawn where the checkpoint has none of them."""
    loads_by_part: ClassVar[bool] = False
    """Whether transformers cannot load the model as every stage needs it: it is then read tensor by tensor."""
    trains_head: ClassVar[bool] = False
    """Whether adapters leave what lies outside the base model to be trained whole, beside tasks that name classes."""
    moves_buffers: ClassVar[bool] = False
    """Whether the model may itself change its buffers in training, other than those of batch norms."""
    settles: ClassVar[bool] = False
    """Whether `settle` does anything."""
    legend: ClassVar[str | None] = None
    """What a preview shows; None: text of which some tokens are trained."""
    unit: ClassVar[str] = "token"
    """What `size` counts."""
    sequence_group: Any = None
    """The process group whose ranks share the sequences of a batch, where they are cut (`split`); None: they are whole."""

    def __init__(self, options: Options, processor: Any) -> None:
        self.options: Any = options
        """The task's section of the recipe, of its own type."""
        self.processor = processor
        """What `load_processor` gave."""

    @classmethod
    def load_processor(cls, model: Model) -> Any:
        """What of the checkpoint turns a row into what the model reads: a tokenizer here; an image processor, a feature
        extractor, several in one, or None for a task that needs none. Saved with the model. Raises ModelError."""
        return load_tokenizer(model)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: the processor itself, or the one in it."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def vocabulary_size(self) -> int | None:
        """Tokens of the tokenizer; None where there is none."""
        return len(self.tokenizer) if hasattr(self.tokenizer, "get_vocab") else None

    def own_rows(self, split: str) -> Sequence[Row] | None:
        """The rows of a split that the task itself has, for data.train="own"; None: it has none, and "own" is a place."""
        return None

    def own_config(self, model: Model) -> Any:
        """The configuration of a network that is none of transformers'; None: `toolkit.models.config` finds it."""
        return None

    # The rows as a whole

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

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """Lines to say about how the training rows, which `row_name` names, are read, and about what `fit` decided."""
        return []

    @property
    def new_head(self) -> bool:
        """Whether the layer whose shape follows from num_labels starts at random values, whatever the checkpoint has."""
        return False

    def config_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that follow from the data."""
        return {}

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Look at the config of the model, before it is built. Raises ModelError for one that cannot do this task."""

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...] | None:
        """The tokens that these raw rows train as the end of an answer; None for a task that generates nothing."""
        return None

    def generation_settings(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of generation for the export: those of the checkpoint, with what this task decides; None takes one out."""
        return dict(stated)

    # One row, one example

    @abstractmethod
    def encode(self, row: Row) -> list[Example]:
        """Examples of one raw row. Raises DataError for a row it cannot use."""

    def columns(self, row: Row) -> Collection[str]:
        """The columns of `row`, one that `encode` takes, that it reads; the others have no effect."""
        return [column for name, column in self.options if name.endswith("_field") and column in row]

    def recognised(self, row: Row) -> Recognised | None:
        """As which format `row`, one that `encode` takes, is read; None where a task knows only one."""
        return None

    def describe(self) -> dict[str, Any]:
        """JSON-able values that change what `encode` returns; part of the prepared data's identity."""
        settings = type(self.options).settings
        return {"task": self.options.name, **self.options.model_dump(mode="json", exclude={"name", *settings})}

    def size(self, example: Example) -> int:
        """What packing and length limits count: tokens, frames, pixels."""
        return tokens.size(example)

    def targets(self, example: Example) -> int:
        """What of `example` carries loss: tokens, or labels. An example without any is left out."""
        return tokens.num_targets(example)

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """`example` as those of at most `capacity` that `overlong` (data.overlong) makes of it; `counts` what it did."""
        return tokens.fit(example, capacity, overlong, counts)

    def ignored(self, example: Example) -> Example:
        """The same example without a target: it takes part in a forward pass and adds nothing to the loss."""
        return tokens.masked(example)

    def located(self, row: Row, folder: Path | None) -> Row:
        """`row` with the paths in it that are not absolute taken as those of files in `folder`, that of the data file."""
        return row

    def source(self, row: Row) -> Example:
        """The arrays `sourced` of the example that `row` gives; `encode` returns them, too. Cheap: nothing is decoded."""
        return {}

    def examine(self, example: Example) -> None:
        """Decode the sourced arrays of `example` once, when it is prepared: raise Unreadable, with the name of the file, for
        those that cannot be used. Called from several threads."""

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """What is costly to store, or drawn anew each time, made when `example` is collated; see `transforms`.

        `random` depends on the seed, the pass over the data and the example alone: the same on any number of ranks.
        `is_trained`: not for an evaluation. Called from several threads at once.
        """
        return example

    @property
    def mixes(self) -> bool:
        """Whether `mix` does anything. Such a task cannot pack."""
        return False

    def mix(self, example: Example, other: Example, random: np.random.Generator) -> Example:
        """`example` of a training step with something of `other`, its neighbour in the global batch; see `mixes`.

        Both are transformed already; `random` goes on from the transform of `example`.
        """
        return example

    def remarks_on_packs(self, sequences: Sequences) -> list[str]:
        """Lines to say about which examples share a sequence. Raises DataError where nothing can be learned so."""
        return []

    def show(self, example: Example) -> Shown:
        """`example` for a reader, as --preview prints it."""
        return tokens.show(self.tokenizer, example)

    # A batch

    @abstractmethod
    def collate(self, sequences: list[list[Example]]) -> Batch:
        """One micro-batch; each inner list is one sequence, of one example or a pack."""

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Targets in `batch`, which lies on the CPU: what the loss is averaged over. Fillers of an evaluation have none."""

    def inputs(self, batch: Batch) -> Batch:
        """What of `batch` the model is called with, on every pipeline stage: all but `answers`.

        Later stages find hidden states in it, as inputs_embeds, beside the tokens they come from.
        """
        return {name: values for name, values in batch.items() if name not in self.answers}

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """Part `index` of `count` of every sequence in `batch`; targets stay with the positions that predict them.

        Asked for by tasks whose section has "sequence" among its `cuts`.
        """
        raise NotImplementedError

    def stand_in(self, length: int, config: Any) -> Example:
        """An example of `length` tokens, each with its target, whose values mean nothing: what a plan's largest micro-batch
        is made of where the data is not at hand. `config` is the model's. Raises NotImplementedError where only the data can tell.
        """
        nothing = np.zeros(length, np.int32)
        return {"input_ids": nothing, "labels": nothing}

    def assume(self) -> None:
        """Take for granted what only the rows would tell, for a plan without them."""

    def one_example(self) -> Batch | None:
        """What the model is called with for one example, on the meta device, where all have one shape; None: they are sequences
        of tokens. FLOPs are counted by it."""
        return None

    # The model

    def frozen(self, model: nn.Module, *, beside_adapters: bool) -> Collection[str]:
        """Names of parameters of `model`, whose weights need not be there, that this task leaves as they are, so that they
        get no adapter either; `prepare` is what takes their gradient away where all weights are trained."""
        return ()

    def prepare(self, model: nn.Module) -> None:
        """Change the loaded model before DeepSpeed sees it: no new parameters, nothing in its config, which is saved already."""

    def settle(self, model: nn.Module) -> None:
        """Ask the model how to compute, once its engine is there, without gradients; see `settles`. Collective."""

    @property
    def adds_loss(self) -> bool:
        """Whether `loss` may return something in Loss.added; known after `prepare`."""
        return False

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The losses of the targets of `batch`. The caller multiplies their gradient by `gradient_scale`."""

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What a step logs of the means of its `logged` sums."""
        return dict(means)

    def reference(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """What `model`, which training is to begin with, gives to each example of `batch`: [E, n] fp64.

        Asked for once before training, by tasks whose section `reads_reference`, where the model in training does not keep
        its first weights: examples then have an array "reference" [n] more.
        """
        raise NotImplementedError

    def survey(self, model: nn.Module, batch: Batch) -> Batch:
        """Sums over `batch`, 0-dim, without gradients and dropout, before any of its global batch is trained or evaluated."""
        raise NotImplementedError

    def surveyed(self, sums: Mapping[str, float]) -> None:
        """Take over the sums of `survey` over the whole global batch, or the whole held-out set."""

    @property
    def compares(self) -> bool:
        """Whether the loss of an example depends on the others of its global batch: `look` and `compare` come before it."""
        return False

    def look(self, model: nn.Module, batch: Batch) -> Batch:
        """What has to be known of each example of `batch`: tensors [n, ...], in the order of the examples.

        Called without gradients; in a training step under the dropout that `loss` will then draw for the same batch, so
        what is drawn must be drawn in the same order.
        """
        raise NotImplementedError

    def compare(self, found: Batch) -> Batch:
        """Of what `look` found in a whole global batch, [N, ...] in its order, what `loss` needs of each example, [N, ...].

        `loss` finds its part in its batch, by the names given here. The same on every rank.
        """
        raise NotImplementedError

    def tally(self, found: Batch) -> Sums:
        """Sums for `metrics` of what `look` found in all held-out examples, [N, ...] in data order, on the CPU. On rank 0."""
        raise NotImplementedError

    def files(self, config: Any, batch: BatchSizes) -> dict[str, Any]:
        """Further files of an export: path in its folder -> JSON-able content."""
        return {}

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Sums over the targets of `batch` that `metrics` turns into metrics; always with "loss"."""

    @abstractmethod
    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a whole evaluation; always with "loss"."""

    def told(self, model: nn.Module, batch: Batch, examples: Sequence[Example]) -> tuple[Sums, list[Record]]:
        """What `evaluate` and `predict` return, by one forward pass; see `tells_at_once`."""
        raise NotImplementedError

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """What else is to be kept of the records of a whole evaluation, such as a confusion matrix: JSON-able, by name. On rank 0."""
        return {}

    @property
    def makes_records(self) -> bool:
        """Whether an evaluation asks for `predict` and `score`, beside the sums."""
        return False

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """One record per example of `examples`, in their order, fillers included: they are dropped afterwards.

        `batch`, on the device, is what `collate` has made of `examples` (those of a packed sequence follow each other);
        there fillers have no targets.
        Runs on every rank, without gradients and dropout, on whole sequences; each rank must call `model` and `generate`
        as often as the others. Under a pipeline `model` looks like the whole model.
        """
        raise NotImplementedError

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of the records of all held-out examples, each once, in data order; see `toolkit.tasks.metrics`. On rank 0."""
        raise NotImplementedError

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """Something to look at: the model's answer to task.sample_prompt, or None. Every rank must take part."""
        return None
