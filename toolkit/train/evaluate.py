"""One evaluation of the held-out set: sums over its targets, and records of its examples where the task makes any.

Both are the same whatever the world size, the micro-batch and the strategy: what only fills batches up is left out, and
the records of all ranks are put into the order of the data before they are judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.checkpoint.durable import write_text
from toolkit.checkpoint.manifest import folder_name
from toolkit.data.batches import EvaluationBatch, evaluation_batches
from toolkit.data.example import Sequences
from toolkit.data.joined_store import AnyStore
from toolkit.data.prefetch import ahead
from toolkit.engine import process
from toolkit.engine.feed import on_device
from toolkit.engine.protocol import Batch, Engine
from toolkit.models.decoding import Generate
from toolkit.recipe import Recipe
from toolkit.storage import storage_errors
from toolkit.tasks.base import Record, Task
from toolkit.train.examples import num_workers
from toolkit.train.inputs import Inputs
from toolkit.train.metrics import strict
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

ENDING = ".jsonl"
BUILT_AHEAD = 2
"""Micro-batches of an evaluation that are decoded while another is computed."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out set of a run, and how it is gone through."""

    engine: Engine
    task: Task
    store: AnyStore
    sequences: Sequences
    """Those that are evaluated: indices into the store, one list per packed sequence."""
    me: process.Process
    micro_size: int
    predictions: Path
    """Folder of the records, one file per evaluation."""
    display: Display
    workers: int = 0
    """Threads that decode and draw examples."""

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics of the weights as they are after `step` steps. Collective."""
        if self.task.surveys:
            self.task.surveyed(self._sums(self.task.survey))
        found = self._tallied() if self.task.looks else self._sums(self.task.evaluate)
        metrics = self.task.metrics(found)
        if self.task.makes_records:
            metrics |= self._scored(step)
        return metrics

    def _sums(self, function: Callable[[nn.Module, Batch], dict[str, float]]) -> dict[str, float]:
        return self.engine.evaluate((batch.tensors for batch in self._batches()), function)

    def _batches(self) -> Iterator[EvaluationBatch]:
        batches = evaluation_batches(
            self.store,
            self.sequences,
            self.task.collate,
            self.me.data_rank,
            self.me.mesh.data,
            self.micro_size,
            kind=self.task,
            workers=self.workers,
        )
        return ahead(batches, BUILT_AHEAD if self.task.transforms and self.workers else 0)

    def _tallied(self) -> dict[str, float]:
        """Sums over all examples together, which rank 0 gathers; the same on every rank."""
        seen: dict[int, dict[str, NDArray[Any]]] = {}
        for batch in self._batches():
            mine = self.engine.call(partial(_looked_at, self.task, batch), on_device(batch.tensors))
            for found in process.gather_on_main(mine if self._speaks_for_replica else {}):
                seen |= found
        return process.from_main_at_length(lambda: self._tally(seen))

    def _tally(self, seen: dict[int, dict[str, NDArray[Any]]]) -> dict[str, float]:
        """For rank 0."""
        rows = [seen[number] for number in sorted(seen)]
        with torch.no_grad():
            return self.task.tally({
                name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]
            })  # fmt: skip

    def _scored(self, step: int) -> dict[str, float]:
        """The metrics of the records, which rank 0 gathers, judges and writes down; the same on every rank."""
        records: dict[int, Record] = {}
        with self.display.counting("predictions", sum(map(len, self.sequences))) as advance:
            for batch in self._batches():
                function = partial(_predicted, self.task, batch)
                mine = self.engine.call(function, on_device(batch.tensors), self.engine.generate)
                # After each batch, so that no rank runs further ahead than a collective waits.
                for found in process.gather_on_main(mine if self._speaks_for_replica else {}):
                    records |= found
                    advance(len(found))
        return process.from_main_at_length(lambda: self._judged(step, records))

    @property
    def _speaks_for_replica(self) -> bool:
        """Whether this is the one of the ranks with the same batches whose records count."""
        mesh, rank = self.me.mesh, self.me.rank
        return all(mesh.coordinate(rank, axis) == 0 for axis in ("pipeline", "sequence", "tensor"))

    def _judged(self, step: int, records: dict[int, Record]) -> dict[str, float]:
        """For rank 0."""
        in_order = sorted(records)
        lines = (json.dumps(strict({"example": number, **records[number]}), allow_nan=False) for number in in_order)
        with storage_errors("writing predictions", self.predictions.parent):
            self.predictions.mkdir(exist_ok=True)
            write_text(self.predictions / f"{folder_name(step)}{ENDING}", (f"{line}\n" for line in lines))
        return self.task.score([records[number] for number in in_order])


def _looked_at(task: Task, batch: EvaluationBatch, model: nn.Module, tensors: Batch) -> dict[int, dict[str, Any]]:
    """What `task` sees in the real examples of `batch`, by their numbers."""
    found = {name: values.cpu().numpy() for name, values in task.look(model, tensors).items()}
    numbers = enumerate(batch.numbers)
    return {number: {name: found[name][row] for name in found} for row, number in numbers if number is not None}


def _predicted(
    task: Task, batch: EvaluationBatch, model: nn.Module, tensors: Batch, generate: Generate
) -> dict[int, Record]:
    """What `task` says of the real examples of `batch`, by their numbers."""
    found = task.predict(model, tensors, batch.examples, generate)
    if len(found) != len(batch.examples):
        raise ValueError(f"{type(task).__name__}.predict has {len(found)} records for {len(batch.examples)} examples")
    return {number: record for number, record in zip(batch.numbers, found, strict=True) if number is not None}


def held_out(
    recipe: Recipe, inputs: Inputs, engine: Engine, me: process.Process, folder: RunFolder, display: Display
) -> HeldOut | None:
    """The held-out set of a run, as far as evaluation.max_sequences goes; None: nothing is held out."""
    if inputs.held_out is None:
        return None
    return HeldOut(
        engine,
        inputs.task,
        inputs.held_out,
        inputs.held_out_sequences[: recipe.evaluation.max_sequences],
        me,
        recipe.batch.micro_size,
        folder.predictions,
        display,
        num_workers(recipe.data),
    )


def forget_predictions(folder: Path, step: int) -> None:
    """Drop the records that a run resumed at `step` writes again: of later steps, and at step 0 of all."""
    with storage_errors("clearing predictions", folder.parent):
        for file in folder.glob(f"step-*{ENDING}"):
            number = file.name.removeprefix("step-").removesuffix(ENDING)
            if number.isdigit() and (int(number) > step or step == 0):
                file.unlink()
