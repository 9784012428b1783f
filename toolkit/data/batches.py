"""Batches of optimizer steps, from a store or from a stream; the same global batch whatever the world size."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.data.columns import update_digest
from toolkit.data.drawing import Drawing, Placed, drawing
from toolkit.data.encoding import Encoder, Exchange, TeamEncoder
from toolkit.data.example import Collate, Example, Kind, Sequences
from toolkit.data.joined_store import AnyStore
from toolkit.data.order import Order, shard
from toolkit.data.packing import Counts, best_fit, one_each
from toolkit.data.prefetch import ahead
from toolkit.data.store import content_of
from toolkit.data.tokens import TOKENS
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    import datasets

KNOWN_ROWS = 64
"""Rows at the beginning of a stream whose examples are compared: it is not encoded as a whole in advance."""


@dataclass(frozen=True)
class Contents:
    """What the batches of a run are drawn from, to be compared with that of another start."""

    digest: str
    """SHA-256 of the encoded examples; of a stream, of those in its first KNOWN_ROWS rows."""
    sequences: int | None
    """Sequences of one pass; None for a stream."""


@dataclass
class StepBatch:
    """What one rank computes in one optimizer step."""

    step: int
    """0 is the first."""
    epoch: float
    """Passes over the data that lie behind once this step is done; a stream, whose length is unknown, counts whole ones."""
    micro_batches: list[dict[str, torch.Tensor]]
    lengths: NDArray[np.int64]
    """Tokens of each example in the global batch, over all ranks, without padding; [num_samples]."""

    @property
    def num_samples(self) -> int:
        """Examples in the global batch, over all ranks."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding in the global batch, over all ranks."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class StoredBatches:
    """Batches from a store. The position is the step, so there is nothing else to save."""

    store: AnyStore
    sequences: Sequences
    """Indices into the store, one list per packed sequence."""
    order: Order
    collate: Collate
    rank: int
    world_size: int
    micro_size: int
    kind: Kind = TOKENS
    workers: int = 0
    """Threads that draw examples, beside the one that collates them; 0: that one does."""

    def contents(self) -> Contents:
        """The examples and the sequences packed from them."""
        return Contents(self.store.digest, len(self.sequences))

    def iterate(
        self, start_step: int, stop_step: int, prefetch: int = 0, state: Mapping[str, Any] | None = None
    ) -> Iterator[StepBatch]:
        """Batches of steps [start_step, stop_step), about `prefetch` micro-batches built ahead by a thread.

        Raises CheckpointError when `state` belongs to another step.
        """
        if state is not None and state["step"] != start_step:
            raise _wrong_state(f"step {state['step']}", f"step {start_step}")
        return ahead(
            self._steps(start_step, stop_step),
            _depth(prefetch, self.order.global_size, self.world_size, self.micro_size),
        )

    def state(self, step: int) -> dict[str, Any]:
        """What `iterate` needs to go on with step `step`."""
        return {"step": step}

    def _steps(self, start: int, stop: int) -> Iterator[StepBatch]:
        with drawing(self.kind, self.workers) as draw:
            for step in range(start, stop):
                yield self._batch(step, draw)

    def _batch(self, step: int, draw: Drawing) -> StepBatch:
        chosen = [
            [self._placed(passes, index) for index in self.sequences[position]]
            for passes, position in self.order.places(step)
        ]
        wanted = shard(range(len(chosen)), self.rank, self.world_size, self.micro_size)
        micro_batches = [self.collate(sequences) for sequences in draw.of(chosen, wanted)]
        lengths = self.store.lengths[[place[-1] for place, _ in itertools.chain.from_iterable(chosen)]]
        return StepBatch(step, self.order.epoch(step + 1), micro_batches, lengths)

    def _placed(self, passes: int, index: int) -> Placed:
        return (self.order.seed, passes, index), partial(self.store.__getitem__, index)


@dataclass(frozen=True)
class Position:
    """Where a stream stands: the next sequence to deal."""

    passes: int = 0
    """Times the stream ended."""
    rows: int = 0
    """Rows of this pass read before the window."""
    offset: int = 0
    """Sequences of the window dealt already."""


@dataclass
class StreamedBatches:
    """Batches from a stream, read in windows: the rows of a window are encoded, packed and shuffled together.

    Every rank reads the rows of the whole stream and collates its share, so the order does not depend on the world
    size. With `exchange`, each rank encodes its part of every window and gets the others' parts, which changes nothing
    but the time: tokenising is most of the work. The stream starts again when it ends; its last window may be short.
    """

    rows: datasets.IterableDataset
    encoder: Encoder
    packing: bool
    shuffle: bool
    seed: int
    global_size: int
    collate: Collate
    rank: int
    world_size: int
    micro_size: int
    window_rows: int = 1024
    workers: int = 0
    """As of StoredBatches."""
    exchange: Exchange | None = None
    """Set once the ranks can talk to each other; None: this process encodes every row."""
    _positions: dict[int, Position] = field(default_factory=dict, init=False)

    def contents(self) -> Contents:
        """The beginning of the stream."""
        encoder = replace(self.encoder, counts=Counts())
        digest = hashlib.sha256()
        for number, row in enumerate(itertools.islice(self.rows, KNOWN_ROWS), start=1):
            for example in encoder.examples(row, number):
                update_digest(digest, content_of(example, encoder.kind))
        return Contents(digest.hexdigest(), None)

    def iterate(
        self, start_step: int, stop_step: int, prefetch: int = 0, state: Mapping[str, Any] | None = None
    ) -> Iterator[StepBatch]:
        """Batches of steps [start_step, stop_step), about `prefetch` micro-batches built ahead by a thread.

        With the `state` of `start_step` only its window is encoded again; without, everything before it is.
        Raises CheckpointError for a state of another step or another window size.
        """
        position = self._restore(start_step, state)
        self._positions = {start_step: position}
        skipped = 0 if state is not None else start_step * self.global_size
        steps = self._steps(start_step, stop_step, position, skipped)
        for batch, after in ahead(steps, _depth(prefetch, self.global_size, self.world_size, self.micro_size)):
            self._positions[batch.step + 1] = after
            self._positions.pop(batch.step - 1, None)
            yield batch

    def state(self, step: int) -> dict[str, Any]:
        """What `iterate` needs to go on with step `step`: the step of the batch yielded last, or the one after it."""
        if step not in self._positions:
            raise ValueError(f"the stream stands at steps {sorted(self._positions)}, not at {step}")
        return {"step": step, "window_rows": self.window_rows, **asdict(self._positions[step])}

    def _restore(self, start_step: int, state: Mapping[str, Any] | None) -> Position:
        if state is None:
            return Position()
        given, wanted = (state["step"], state.get("window_rows")), (start_step, self.window_rows)
        if given != wanted:
            raise _wrong_state(*(f"step {step} with windows of {rows} rows" for step, rows in (given, wanted)))
        return Position(state["passes"], state["rows"], state["offset"])

    def _steps(self, start: int, stop: int, position: Position, skipped: int) -> Iterator[tuple[StepBatch, Position]]:
        kind = self.encoder.kind
        with TeamEncoder(self.encoder, self.exchange) as team, drawing(kind, self.workers) as draw:
            dealt = itertools.islice(self._sequences(position, team), skipped, None)
            for step in range(start, stop):
                chosen, positions = zip(*itertools.islice(dealt, self.global_size), strict=True)
                wanted = shard(range(len(chosen)), self.rank, self.world_size, self.micro_size)
                micro_batches = [self.collate(sequences) for sequences in draw.of(chosen, wanted)]
                lengths = np.array([kind.size(kept()) for sequence in chosen for _, kept in sequence], np.int64)
                after = positions[-1]
                yield StepBatch(step, float(after.passes), micro_batches, lengths), after

    def _sequences(self, position: Position, team: TeamEncoder) -> Iterator[tuple[list[Placed], Position]]:
        """Every sequence from `position` on, with the position after it; never ends."""
        passes, rows_read, offset = position.passes, position.rows, position.offset
        while True:
            stream = iter(self.rows.skip(rows_read) if rows_read else self.rows)
            while window := list(itertools.islice(stream, self.window_rows)):
                for sequence in self._window(team.examples(window, rows_read), passes, rows_read)[offset:]:
                    offset += 1
                    yield sequence, Position(passes, rows_read, offset)
                rows_read, offset = rows_read + len(window), 0
            self.encoder.check(rows_read)
            passes, rows_read = passes + 1, 0

    def _window(self, examples: list[Example], passes: int, rows_read: int) -> list[list[Placed]]:
        """The sequences of one window, in the order in which they are dealt."""
        lengths = [self.encoder.kind.size(example) for example in examples]
        groups = best_fit(lengths, self.encoder.capacity) if self.packing else one_each(len(examples))
        order = np.arange(len(groups))
        if self.shuffle:
            order = np.random.Generator(np.random.PCG64([self.seed, passes, rows_read])).permutation(len(groups))
        place = (self.seed, passes, rows_read)
        return [
            [((*place, index), partial(examples.__getitem__, index)) for index in groups[position]]
            for position in order
        ]


@dataclass(frozen=True)
class EvaluationBatch:
    """One micro-batch of an evaluation, and what each of its examples is."""

    tensors: dict[str, torch.Tensor]
    """What the task's collate has made of `examples`, of those that only fill up without their targets."""
    examples: list[Example]
    """Sequence by sequence, those of a pack in their order, all with their targets."""
    numbers: list[int | None]
    """Index in the held-out store of each example; None for one that only fills up."""


def evaluation_batches(
    store: AnyStore,
    sequences: Sequences,
    collate: Collate,
    rank: int,
    world_size: int,
    micro_size: int,
    max_sequences: int | None = None,
    kind: Kind = TOKENS,
    workers: int = 0,
) -> Iterator[EvaluationBatch]:
    """Micro-batches of `micro_size` of the first `max_sequences` sequences (None: of all) for one rank, in order.

    Each of those is on exactly one rank, however many ranks there are. Every rank gets the same number of micro-batches
    (a ZeRO-3 rank alone in a forward pass waits for ever): where sequences run out, a copy of the first one fills up,
    without a target. What is drawn for an example is the same in every evaluation.
    """
    sequences = sequences[:max_sequences]
    width = world_size * micro_size
    with drawing(kind, workers, is_trained=False) as draw:
        for batch in range(math.ceil(len(sequences) / width)):
            start = batch * width + rank * micro_size
            mine = sequences[start : start + micro_size]
            numbers: list[int | None] = [index for sequence in mine for index in sequence]
            placed = [
                [((0, 0, index), partial(store.__getitem__, index)) for index in sequence]
                for sequence in [*mine, sequences[0]]
            ]
            [found] = draw.of(placed, [[*range(len(mine)), *[len(mine)] * (micro_size - len(mine))]])
            filling = ([kind.ignored(example) for example in sequence] for sequence in found[len(mine) :])
            tensors = collate([*found[: len(mine)], *filling])
            examples = list(itertools.chain.from_iterable(found))
            yield EvaluationBatch(tensors, examples, numbers + [None] * (len(examples) - len(numbers)))


def _depth(prefetch: int, global_size: int, world_size: int, micro_size: int) -> int:
    """Steps to build ahead so that about `prefetch` micro-batches are waiting."""
    return math.ceil(prefetch * world_size * micro_size / global_size)


def _wrong_state(given: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the saved position in the data is of {given}",
        expected=expected,
        do="resume from a checkpoint of this run, with data.streaming as it was",
    )
