"""The sources of a run as examples: encoded and kept each on its own, packed, and put in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.cache import cache_dir
from toolkit.data.batches import StoredBatches, StreamedBatches
from toolkit.data.encoding import Encoder
from toolkit.data.example import Sequences
from toolkit.data.forms.recognised import recognised_lines
from toolkit.data.joined_store import AnyStore, JoinedStore
from toolkit.data.order import Order, num_passed
from toolkit.data.packing import best_fit, efficiency, one_each
from toolkit.data.reading.class_names import class_names
from toolkit.data.reading.mixture import Mixture, Part
from toolkit.data.reading.sources import Source
from toolkit.data.store import Store, fingerprint, prepare
from toolkit.engine.process import from_environment
from toolkit.errors import DataError, plural
from toolkit.recipe import Data, Recipe
from toolkit.tasks.base import Task
from toolkit.tasks.encoder import encoder_of
from toolkit.train.progress import Display

MOST_WORKERS = 8


@dataclass(frozen=True)
class Prepared:
    """The examples of one field of the recipe."""

    mixture: Mixture
    store: AnyStore
    packed: tuple[Sequences, ...]
    """Of each source its sequences, by indices into the store; none has examples of two sources."""

    @property
    def sequences(self) -> Sequences:
        """Those of all sources."""
        return list(chain.from_iterable(self.packed))


@dataclass(frozen=True)
class Preparing:
    """What is needed to make examples of rows."""

    recipe: Recipe
    task: Task
    display: Display

    def try_first_rows(self, mixture: Mixture, name: str) -> None:
        """Encode the first row of each source. Raises DataError where a fault is likely to be that of all rows."""
        for part in mixture.parts:
            encoder = self._encoder(part.source, row_name=mixture.part_row_name(part, name))
            for row in islice(part.source.rows, 1):
                encoder.examples(row, 1)

    def _encoder(self, source: Source, **said: Any) -> Encoder:
        """What encodes the rows of `source`."""
        data = self.recipe.data
        return encoder_of(
            self.task,
            source.rows,
            *self._limits,
            folder=source.folder,
            unreadable=data.unreadable,
            workers=num_workers(data),
            **said,
        )

    @property
    def _limits(self) -> tuple[int, str]:
        """What an example may have, and what becomes of a larger one."""
        return self.recipe.batch.sequence_length, self.recipe.data.overlong

    def examples(self, mixture: Mixture, name: str, read_from: str | None = None) -> Prepared:
        """The examples of `name`, whose rows come from the field `read_from` where that is another one."""
        stores: list[Store] = []
        packed: list[Sequences] = []
        start = 0
        for part in mixture.parts:
            stores.append(self._store(mixture, part, name, read_from or name))
            sequences = self._packed(stores[-1])
            packed.append([[start + index for index in sequence] for sequence in sequences] if start else sequences)
            start += len(stores[-1])
        store = stores[0] if mixture.is_plain else JoinedStore(stores, mixture.weights)
        return Prepared(mixture, store, tuple(packed))

    def _store(self, mixture: Mixture, part: Part, name: str, read_from: str) -> Store:
        """The examples of one source."""
        task, rows = self.task, part.source.rows
        name = name if len(mixture.parts) == 1 else f"{name}, {part.location}"
        capacity, overlong = self._limits
        described = {**task.describe(), "class_names": class_names(rows), "capacity": capacity, "overlong": overlong}
        if task.sourced:
            described["unreadable"] = self.recipe.data.unreadable
        table: Any = rows
        self.display.say(f"preparing {name}: {len(table):,} rows")
        store = prepare(
            rows,
            self._encoder(part.source, name=name, row_name=mixture.part_row_name(part, read_from)),
            cache_dir=cache_dir() / "tokens",
            fingerprint=fingerprint(part.source.content, task.processor, **described),
        )
        counts = store.counts.describe()
        self.display.say(
            f"  {len(store):,} examples, {store.num_tokens:,} {task.unit}s, {store.num_trained_tokens:,} with loss"
            + (f" ({counts})" if counts else "")
        )
        for line in (*recognised_lines(store.forms), *(f"  left out: {said}" for said in store.skipped)):
            self.display.say(line)
        return store

    def _packed(self, store: Store) -> Sequences:
        length = self.recipe.batch.sequence_length
        return best_fit(store.lengths, length) if self.recipe.data.packing else one_each(len(store))

    def ordered(self, prepared: Prepared, rank: int, world_size: int) -> tuple[StoredBatches, int]:
        """The batches of one rank, and the optimizer steps of the run."""
        recipe, sequences, store = self.recipe, prepared.sequences, prepared.store
        for line in _passed(prepared):
            self.display.say(line)
        order = Order(
            [len(packed) for packed in prepared.packed],
            recipe.batch.global_size,
            recipe.seed,
            recipe.data.shuffle,
            prepared.mixture.weights,
            self._lengths(prepared) if recipe.data.group_by_length else None,
        )
        total = recipe.steps if recipe.steps is not None else order.steps_for(recipe.epochs or 1.0)
        if recipe.data.packing:
            full = efficiency(store.lengths, sequences, recipe.batch.sequence_length)
            self.display.say(
                f"  packed into {len(sequences):,} sequences of {recipe.batch.sequence_length} tokens, {full:.1%} full"
            )
        for line in self.task.remarks_on_packs(sequences):
            self.display.say(line)
        self.display.say(f"  {plural(total, 'step')} = {order.epoch(total):.2f} epochs")
        task, micro_size = self.task, recipe.batch.micro_size
        workers = num_workers(recipe.data)
        return StoredBatches(store, sequences, order, task.collate, rank, world_size, micro_size, task, workers), total

    def _lengths(self, prepared: Prepared) -> NDArray[np.int64]:
        """Those of all sequences."""
        sizes = prepared.store.lengths
        return np.array([sizes[sequence].sum() for sequence in prepared.sequences], np.int64)

    def streamed(self, mixture: Mixture, rank: int, world_size: int) -> StreamedBatches:
        """The batches of one rank from a stream."""
        recipe, task = self.recipe, self.task
        [part] = mixture.parts
        rows: Any = part.source.rows
        return StreamedBatches(
            rows=rows,
            encoder=self._encoder(part.source, row_name=mixture.row_name("data.train"), tells_forms=False),
            packing=recipe.data.packing,
            shuffle=recipe.data.shuffle,
            seed=recipe.seed,
            global_size=recipe.batch.global_size,
            collate=task.collate,
            rank=rank,
            world_size=world_size,
            micro_size=recipe.batch.micro_size,
            workers=num_workers(recipe.data),
        )


def num_workers(data: Data) -> int:
    """Threads of this process that decode and draw examples."""
    if data.workers is not None:
        return data.workers
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // from_environment().local_world_size))


def _passed(prepared: Prepared) -> Iterator[str]:
    """How much of each source an epoch has, where there are several. Raises DataError for one of which it has nothing."""
    for part, packed in zip(prepared.mixture.parts, prepared.packed, strict=True):
        passed = num_passed(len(packed), part.weight)
        if not passed:
            raise DataError(
                f"data.train: the weight {part.weight:g} of {part.location!r} takes none of its "
                f"{plural(len(packed), 'sequence')}",
                expected="at least one sequence of each source in an epoch",
                do="raise the weight, or leave the source out",
            )
        if not prepared.mixture.is_plain:
            yield f"  {part.location}: {passed:,} of an epoch's sequences, {len(packed):,} x {part.weight:g}"
