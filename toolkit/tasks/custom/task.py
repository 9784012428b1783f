"""A user's `CustomTask` as a task like any other: its rows, its module's configuration, its loss over real examples."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.example import Example, Row
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.errors import DataError, ModelError, RecipeError, first_few, with_type
from toolkit.models.assets import resolve
from toolkit.models.custom import AutoCustomModel, CustomConfig, build, read_config, sparse_parts
from toolkit.models.decoding import Generate
from toolkit.models.files import check_weights
from toolkit.recipe import Custom, Model
from toolkit.recipe.target import as_json, load_target, read_arguments
from toolkit.tasks.base import Batch, Loss, Record, Sums, Task
from toolkit.tasks.custom.arrays import checked, given_back, kept
from toolkit.tasks.custom.base import CustomTask, Figure
from toolkit.tasks.custom.records import checked_metrics, checked_records

FILLER = "@filler"
"""Array of an example that only fills up an evaluation."""
COUNTED = "@counted"
"""Of each example of a batch [B]: whether it is one that counts."""


class ModuleTask(Task):
    """Asks the author's class for what it says, checks it, and leaves out what only fills up."""

    auto_class = AutoCustomModel
    legend = "each example as the module's batches are made of it"
    loads_by_part = True
    moves_buffers = True
    unit = "value"

    def __init__(self, options: Custom, processor: None) -> None:
        super().__init__(options, processor)
        self.asked = options
        kind = _author_class(options.target)
        arguments = read_arguments(options.target, kind, options.arguments)
        self.arguments = as_json(arguments)
        self.own: CustomTask = kind(**arguments)
        self._kinds: dict[str, tuple[Any, ...]] = {}
        self.transforms = _is_written(kind, "transform")  # type: ignore[misc]

    @classmethod
    def load_processor(cls, model: Model) -> None:  # noqa: ARG003
        """Rows are read by `encode` alone."""
        return

    def own_rows(self, split: str) -> Sequence[Row]:
        """The rows of a split. Raises RecipeError for a class without any."""
        if not _is_written(type(self.own), "rows"):
            raise RecipeError(
                f"data.train or data.evaluation is 'own', and {self._called('rows')} is not there",
                expected="a class with rows(split), or data elsewhere",
                do="write rows, or name a file; a file or folder called own is ./own",
            )
        return self.own.rows(split)

    def own_config(self, model: Model) -> CustomConfig:
        """What the module is built of; built once, without memory, to see that it can be."""
        if model.path is not None:
            read_config(resolve(str(model.path)))
            if not model.is_new:
                check_weights(resolve(str(model.path), weights=True))
        config = CustomConfig(target=self.asked.target, arguments=self.arguments)
        config._attn_implementation = "eager"
        with torch.device("meta"):
            module = build(config)
        if not any(True for _ in module.parameters()):
            raise ModelError(
                f"{self._called('build')} gave {type(module).__name__}, which has no parameters",
                expected="something to train",
                do="register its weights: as nn.Parameter, and modules as attributes or in nn.ModuleList",
            )
        sparse = sparse_parts(module)
        if sparse:
            raise ModelError(
                f"{self._called('build')}: {first_few(sparse, 3)} has sparse=True",
                expected="dense gradients: ZeRO keeps a share of each gradient as one flat piece of memory",
                do="leave out sparse=True",
            )
        return config

    # One row, one example

    def encode(self, row: Row) -> list[Example]:
        """One example of each row."""
        arrays = checked(self.own.encode(row), self._called("encode"))
        kinds = {name: (str(value.dtype), value.ndim, *value.shape[1:]) for name, value in arrays.items()}
        first = self._kinds = self._kinds or kinds
        if kinds.keys() != first.keys():
            raise DataError(
                f"{self._called('encode')} gave {sorted(kinds)}, before it was {sorted(first)}",
                expected="the same names in every example",
                do="give an empty array where there is nothing",
            )
        for name, kind in kinds.items():
            if kind != first[name]:
                raise DataError(
                    f"{self._called('encode')} gave {name!r} as {_shaped(kind)}, before it was {_shaped(first[name])}",
                    expected="in every example the same type, and the same shape but for the first dimension",
                    do=f"make it one type in encode, for instance np.array({name}, np.float32)",
                )
        return [kept(arrays)]

    def columns(self, row: Row) -> Collection[str]:
        """What is not read, the author's code alone knows."""
        return row.keys()

    def describe(self) -> dict[str, Any]:
        """The class, what it was made of, and the code of its module: another `encode` prepares anew."""
        code = _code(type(self.own))
        return {"task": "custom", "target": self.asked.target, "arguments": self.arguments, "code": code}

    def size(self, example: Example) -> int:
        """Numbers in it."""
        return sum(values.size for values in example.values())

    def targets(self, example: Example) -> int:
        """Every example is learned."""
        return 1

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """What is too long, the author's code alone knows."""
        return [example]

    def ignored(self, example: Example) -> Example:
        """The same, marked."""
        return {**example, FILLER: np.ones(1, np.bool_)}

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """What the author draws."""
        found = self.own.transform(given_back(example), random, is_trained=is_trained)
        return kept(checked(found, self._called("transform")))

    def show(self, example: Example) -> Shown:
        """The arrays by name."""
        lines = [
            f"{name}: {np.array2string(value, threshold=60, edgeitems=20)}"
            for name, value in given_back(example).items()
        ]
        return Shown(f"{self.size(example)} values", [("\n".join(lines), False)])

    # A batch

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """The author's batch, and which examples count."""
        examples = [sequence[0] for sequence in sequences]
        is_filler = [FILLER in example for example in examples]
        plain = [{name: value for name, value in example.items() if name != FILLER} for example in examples]
        found = self.own.collate([given_back(example) for example in plain])
        wrong = {name: value for name, value in found.items() if not torch.is_tensor(value)}
        if wrong or not found:
            name = next(iter(wrong), None)
            raise DataError(
                f"{self._called('collate')} gave " + (f"{name!r}: {wrong[name]!r:.60}" if name else "nothing"),
                expected="tensors by name",
                do="return a dict of tensors, of which the first dimension is the example",
            )
        return {**found, COUNTED: ~torch.tensor(is_filler)}

    def count(self, batch: Batch) -> int:
        """Targets of the examples that count."""
        return int(self._targets(batch).sum())

    def _targets(self, batch: Batch) -> Tensor:
        found = self._of_each(self.own.targets(_plain(batch)), batch, "targets")
        if bool((found != found.round()).any()) or bool((found < 0).any()):
            raise RecipeError(
                f"{self._called('targets')} gave {found.tolist()!s:.80}",
                expected="whole numbers from 0 on: how many targets each example has",
                do="weigh in loss, and count in targets",
            )
        return found * batch[COUNTED]

    # The model

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The author's losses of the examples that count."""
        losses = self._of_each(self.own.loss(model, _plain(batch)), batch, "loss")
        if torch.is_grad_enabled() and not losses.requires_grad:
            raise RecipeError(
                f"{self._called('loss')} gave a tensor without a gradient",
                expected="the losses as they follow from what the module gave",
                do="leave out detach(), item() and torch.no_grad() on the way",
            )
        return Loss(_summed(losses, batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss and targets, and of each figure the sum and what it is a sum over."""
        plain, targets = _plain(batch), self._targets(batch)
        losses = self._of_each(self.own.loss(model, plain), batch, "loss")
        sums = {"loss": float(_summed(losses, batch)), "targets": float(targets.sum())}
        for name, figure in self.own.measure(model, plain).items():
            values, over = self._figure(figure, batch, targets)
            sums |= {f"{name} sum": float(_summed(values, batch)), f"{name} count": float(_summed(over, batch))}
        return sums

    def _figure(self, figure: Figure, batch: Batch, targets: Tensor) -> tuple[Tensor, Tensor]:
        values, over = figure if isinstance(figure, tuple) else (figure, targets)
        return self._of_each(values, batch, "measure"), self._of_each(over, batch, "measure")

    def _of_each(self, found: Any, batch: Batch, method: str) -> Tensor:
        """What `method` gave, in fp32 on the batch's device. Raises RecipeError unless it is a number of each example."""
        counted = batch[COUNTED]
        if not torch.is_tensor(found) or found.shape != counted.shape:
            given = f"a tensor {list(found.shape)}" if torch.is_tensor(found) else with_type(found)
            raise RecipeError(
                f"{self._called(method)} gave {given} for a batch of {len(counted)} examples",
                expected=f"a tensor [{len(counted)}]: one number of each example",
                do="sum over an example's targets and not over examples (reduction='none')",
            )
        return found.to(counted.device, torch.float32)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The mean loss of a target, and what the author makes of the means."""
        if not sums["targets"]:
            raise RecipeError(
                f"{self._called('targets')} gave 0 for every held-out example",
                expected="targets to measure on",
                do="correct targets, or the held-out rows",
            )
        means = {"loss": sums["loss"] / sums["targets"]}
        for name in (name.removesuffix(" sum") for name in sums if name.endswith(" sum")):
            means[name] = sums[f"{name} sum"] / (sums[f"{name} count"] or math.nan)
        return {"loss": means["loss"], **self._declared(self.own.figures(means), "figures")}

    def _declared(self, given: Any, method: str) -> dict[str, float]:
        kind = type(self.own)
        return checked_metrics(given, kind.metrics, self._called(method), kind.__name__)

    @property
    def makes_records(self) -> bool:
        """Whether the author has written `predict`."""
        return _is_written(type(self.own), "predict")

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """What the author's `predict` gives."""
        return checked_records(self.own.predict(model, _plain(batch)), len(examples), self._called("predict"))

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """What the author's `score` gives."""
        return self._declared(self.own.score(records), "score")

    def _called(self, method: str) -> str:
        return f"{method} of {self.asked.target}"


def _plain(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != COUNTED}


def _summed(values: Tensor, batch: Batch) -> Tensor:
    """Over the examples that count; whatever a filler gives, even a NaN, stays out of it."""
    return torch.where(batch[COUNTED], values, 0.0).sum()


def _shaped(kind: tuple[Any, ...]) -> str:
    dtype, ndim, *rest = kind
    return f"a number of type {dtype}" if not ndim else f"{dtype} [{', '.join(['n', *map(str, rest)])}]"


def _author_class(target: str) -> type[CustomTask]:
    """The class that `target` names. Raises RecipeError for anything but a whole CustomTask."""
    found = load_target(target)
    if not (isinstance(found, type) and issubclass(found, CustomTask)):
        raise RecipeError(
            f"task.target={target!r} is {found!r:.80}",
            expected="a subclass of toolkit.tasks.custom.CustomTask",
            do="name that class",
        )
    if inspect.isabstract(found):
        raise RecipeError(
            f"task.target={target!r} lacks {' and '.join(sorted(found.__abstractmethods__))}",
            expected="a class with build and loss",
            do="write them",
        )
    return found


def _is_written(kind: type[CustomTask], method: str) -> bool:
    return getattr(kind, method) is not getattr(CustomTask, method)


def _code(kind: type[CustomTask]) -> str:
    """Digest of the files of the class and of those that it derives from."""
    modules = [sys.modules.get(base.__module__) for base in kind.__mro__ if issubclass(base, CustomTask)]
    paths = [Path(path) for module in modules if (path := getattr(module, "__file__", None))]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
