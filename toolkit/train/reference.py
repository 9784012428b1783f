"""What the model that training begins with gives to every example: computed once before training, and kept.

So the reference of DPO and KTO is never a second model in memory. A run whose adapters can be switched off has its
reference in the model and needs none of this (`toolkit.tasks.preferences.answers.reference_sums`). The values are kept by
content: of the examples and how they are packed, of the weights and their number format. A pass that was interrupted goes
on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from toolkit.cache import cache_dir
from toolkit.data.batches import StreamedBatches, evaluation_batches
from toolkit.data.example import Sequences
from toolkit.data.joined_store import AnyStore
from toolkit.engine import process
from toolkit.engine.protocol import Batch, Engine
from toolkit.errors import plural
from toolkit.models.weights_digest import weights_digest
from toolkit.recipe import Recipe
from toolkit.storage import storage_errors
from toolkit.tasks.base import Task
from toolkit.tasks.preferences.answers import REFERENCE
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display

FORMAT = 1
"""Part of every key: raise it when the values, or the files, become others."""
BLOCK = 32
"""Micro-batches of each rank between two times that values are exchanged and written down."""

Values = NDArray[np.float64]


def add_reference(recipe: Recipe, inputs: Inputs, engine: Engine, me: process.Process, display: Display) -> Inputs:
    """`inputs` whose examples have what the model in `engine`, not trained yet, gives to them; as they are where no task
    asks for it, or the model keeps it. Collective.
    """
    task, batches, held_out = inputs.task, inputs.batches, inputs.held_out
    if not recipe.task.reads_reference or recipe.tuning.keeps_base:
        return inputs
    assert not isinstance(batches, StreamedBatches), "refused before"
    scorer = _Scorer(engine, task, me, recipe.batch.micro_size, display, _weights(recipe, engine))
    if held_out is not None:
        held_out = scorer.added(
            held_out, inputs.held_out_sequences[: recipe.evaluation.max_sequences], "data.evaluation"
        )
    store = scorer.added(batches.store, batches.sequences, "data.train")
    return replace(inputs, batches=replace(batches, store=store), held_out=held_out)


def _weights(recipe: Recipe, engine: Engine) -> dict[str, Any]:
    """JSON-able: what decides the first weights, and the numbers that they compute."""
    model = recipe.model
    found = None if model.is_new else weights_digest(str(model.path))
    drawn = {"seed": recipe.seed, "path": model.path, "architecture": model.architecture} if found is None else {}
    dtype = str(next(engine.model.parameters()).dtype)
    return {"weights": found, **drawn, "config": model.config, "precision": recipe.precision.dtype, "dtype": dtype}


@dataclass(frozen=True)
class _Scorer:
    """Goes through examples with a model that is not trained yet."""

    engine: Engine
    task: Task
    me: process.Process
    micro_size: int
    display: Display
    weights: dict[str, Any]

    def added(self, store: AnyStore, sequences: Sequences, name: str) -> AnyStore:
        """`store` with the array REFERENCE, of the examples in `sequences`."""
        rows = list(itertools.chain.from_iterable(sequences))
        values = self._values(store, sequences, name)
        column = np.full((len(store), values.shape[1]), np.nan)
        column[rows] = values
        return store.extended(REFERENCE, column)

    def _values(self, store: AnyStore, sequences: Sequences, name: str) -> Values:
        """[examples in `sequences`, n], in their order: from the cache as far as they are there."""
        path = cache_dir() / "references" / f"{self._key(store, sequences)}.f64"
        done = process.from_main(lambda: _read(path))
        total = sum(map(len, sequences))
        what = f"reference log-probabilities of {name}"
        if done is not None and len(done) == total:
            self.display.say(f"{what}: {total:,} examples, known from before")
            return done
        first, count = _whole(sequences, 0 if done is None else len(done))
        found = [] if done is None else [done[:count]]
        self.display.say(
            f"{what}: the model as it is before training looks at {plural(total - count, 'example')}"
            + (f" ({count:,} are known from before)" if count else "")
        )
        width = self.me.mesh.data * self.micro_size * BLOCK
        with self.display.counting("reference", total) as advance:
            advance(count)
            for start in range(first, len(sequences), width):
                block = self._block(store, sequences[start : start + width])
                process.from_main(partial(_append, path, block, count))
                found.append(block)
                count += len(block)
                advance(len(block))
        return np.concatenate(found)

    def _block(self, store: AnyStore, sequences: Sequences) -> Values:
        """[examples in `sequences`, n], in their order, on every rank."""
        batches = list(
            evaluation_batches(
                store,
                sequences,
                self.task.collate,
                self.me.data_rank,
                self.me.mesh.data,
                self.micro_size,
                kind=self.task,
            )
        )
        values: list[Values] = []

        def look(model: nn.Module, batch: Batch) -> dict[str, float]:
            values.append(self.task.reference(model, batch).cpu().numpy())
            return {"batches": 1.0}

        self.engine.evaluate((batch.tensors for batch in batches), look)
        mine = {
            number: value
            for batch, found in zip(batches, values, strict=True)
            for number, value in zip(batch.numbers, found, strict=True)
            if number is not None
        }
        # Ranks that compute parts of the same examples have the same values.
        everything: dict[int, Values] = {}
        for found in process.gather_objects(mine):
            everything |= found
        return np.stack([everything[number] for number in itertools.chain.from_iterable(sequences)])

    def _key(self, store: AnyStore, sequences: Sequences) -> str:
        packs = hashlib.sha256(json.dumps([list(map(int, sequence)) for sequence in sequences]).encode()).hexdigest()
        parts = {
            "format": FORMAT,
            "task": self.task.options.name,
            "examples": store.digest,
            "sequences": packs,
            **self.weights,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _whole(sequences: Sequences, count: int) -> tuple[int, int]:
    """How many of `sequences`, from the first on, lie within the first `count` examples, and how many examples they hold."""
    ends = np.cumsum([0, *map(len, sequences)])
    number = int(np.searchsorted(ends, count, side="right")) - 1
    return number, int(ends[number])


def _read(path: Path) -> Values | None:
    """What `_append` wrote to `path`, without a row that a killed pass left unfinished; None: nothing."""
    try:
        found = np.fromfile(path, np.float64)
    except OSError:
        return None
    if len(found) < 2 or not found[0] >= 1:
        return None
    width = int(found[0])
    rows = (len(found) - 1) // width
    return found[1 : 1 + rows * width].reshape(rows, width)


def _append(path: Path, values: Values, before: int) -> None:
    """Write `values` [n, width] behind the first `before` rows in `path`: fp64 numbers, the first of all the width."""
    with storage_errors("keeping reference log-probabilities", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if before else "wb") as file:
            file.seek(8 * (1 + before * values.shape[1]) if before else 0)
            file.truncate()
            file.write(values.tobytes() if before else np.float64(values.shape[1]).tobytes() + values.tobytes())
