"""One evaluation of the held-out set: sums over its targets, and records of its examples where the task makes any.

Both are the same whatever the world size, the micro-batch and the strategy: what only fills batches up is left out, and
the records of all ranks are put into the order of the data before they are judged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.checkpoint.durable import write_json, write_text
from toolkit.checkpoint.manifest import folder_name
from toolkit.data.batches import EvaluationBatch, evaluation_batches
from toolkit.data.example import Sequences
from toolkit.data.joined_store import AnyStore
from toolkit.data.prefetch import ahead
from toolkit.engine import process
from toolkit.engine.base import total_losses
from toolkit.engine.feed import on_device
from toolkit.engine.protocol import Batch, Engine, Found
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
DETAILS = ".details.json"
BUILT_AHEAD = 2
"""Micro-batches of an evaluation that are decoded while another is computed."""


Tell = Callable[[Task, EvaluationBatch, nn.Module, Batch, Generate], tuple[dict[str, float], dict[int, Record]]]


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
        """Metrics of the weights as they are after `step` steps, or of their averages where the run keeps any. Collective."""
        with self.engine.averaged():
            return self._measured(step)

    def _measured(self, step: int) -> dict[str, float]:
        if self.task.surveys:
            self.task.surveyed(self._sums(self.task.survey))
        at_once = self.task.makes_records and self.task.tells_at_once
        if at_once:
            found, records = self._recorded(_told)
        elif self.task.looks:
            found = self._tallied()
        else:
            found = self._sums(self.task.evaluate)
        metrics = self.task.metrics(found)
        if self.task.makes_records:
            records = records if at_once else self._recorded(_predicted)[1]
            metrics |= process.from_main_at_length(lambda: self._judged(step, records))
        return metrics

    def _sums(self, function: Callable[[nn.Module, Batch], Found]) -> dict[str, float]:
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

    def _recorded(self, tell: Tell) -> tuple[dict[str, float], dict[int, Record]]:
        """The sums over all examples, the same on every rank, and on rank 0 the record of each, by what `tell` says of a batch."""
        records: dict[int, Record] = {}
        sums: Counter[str] = Counter()
        with self.display.counting("predictions", sum(map(len, self.sequences))) as advance:
            for batch in self._batches():
                function = partial(tell, self.task, batch)
                part, mine = self.engine.call(function, on_device(batch.tensors), self.engine.generate)
                sums.update(part)
                # After each batch, so that no rank runs further ahead than a collective waits.
                for found in process.gather_on_main(mine if self._speaks_for_replica else {}):
                    records |= found
                    advance(len(found))
        return total_losses(dict(sums), self.me.mesh.replica_ranks), records

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
        found = [records[number] for number in in_order]
        if details := self.task.details(found):
            with storage_errors("writing predictions", self.predictions.parent):
                write_json(self.predictions / f"{folder_name(step)}{DETAILS}", details)
        return self.task.score(found)


def _looked_at(task: Task, batch: EvaluationBatch, model: nn.Module, tensors: Batch) -> dict[int, dict[str, Any]]:
    """What `task` sees in the real examples of `batch`, by their numbers."""
    found = {name: values.cpu().numpy() for name, values in task.look(model, tensors).items()}
    numbers = enumerate(batch.numbers)
    return {number: {name: found[name][row] for name in found} for row, number in numbers if number is not None}


def _predicted(
    task: Task, batch: EvaluationBatch, model: nn.Module, tensors: Batch, generate: Generate
) -> tuple[dict[str, float], dict[int, Record]]:
    """No sums, and what `task` says of the real examples of `batch`, by their numbers."""
    return {}, _numbered(task, batch, task.predict(model, tensors, batch.examples, generate))


def _told(
    task: Task, batch: EvaluationBatch, model: nn.Module, tensors: Batch, generate: Generate
) -> tuple[dict[str, float], dict[int, Record]]:
    """The sums over `batch`, and what `task` says of its real examples, by their numbers."""
    sums, found = task.told(model, tensors, batch.examples)
    return sums, _numbered(task, batch, found)


def _numbered(task: Task, batch: EvaluationBatch, found: Sequence[Record]) -> dict[int, Record]:
    if len(found) != len(batch.examples):
        raise ValueError(f"{type(task).__name__} has {len(found)} records for {len(batch.examples)} examples")
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
        for file in (*folder.glob(f"step-*{ENDING}"), *folder.glob(f"step-*{DETAILS}")):
            number = file.name.removeprefix("step-").partition(".")[0]
            if number.isdigit() and (int(number) > step or step == 0):
                file.unlink()
