"""Which sequences make up optimizer step s. Depends on the seed and the step, never on the world size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

WINDOW = 50
"""Most steps whose sequences are sorted together where they are grouped by length."""
WINDOWS = 4
"""Fewest such windows of an epoch: sorted as a whole it would give the same steps each time."""

Lengths = NDArray[np.int64]


class Order:
    """The endless concatenation of one permutation per epoch, cut into steps of `global_size` sequences.

    An epoch has each sequence once. Of several sources, in the order of their sequences, it has those of source i
    `weights[i]` times: whole passes, and for what is left of the weight so many of its sequences, none of them twice, drawn
    anew in every epoch by the seed. Without `shuffle` the sources follow one another, pass by pass.

    With `lengths`, those of all sequences, the sequences of a step are of about the same length (and in the order of their
    lengths, so that those of a micro-batch are): see `_grouped`.
    """

    def __init__(
        self,
        num_sequences: int | Sequence[int],
        global_size: int,
        seed: int,
        shuffle: bool,
        weights: Sequence[float] = (1.0,),
        lengths: Lengths | None = None,
    ) -> None:
        sizes = (num_sequences,) if isinstance(num_sequences, int) else tuple(num_sequences)
        if min(sizes, default=0) < 1 or global_size < 1:
            raise ValueError(f"an order needs sequences and a batch size: {num_sequences=}, {global_size=}")
        self._sources = tuple(zip(sizes, map(float, weights), strict=True))
        self.num_sequences = sum(num_passed(size, weight) for size, weight in self._sources)
        """Sequences of one epoch."""
        if not self.num_sequences:
            raise ValueError(f"an epoch without a sequence: {num_sequences=}, {weights=}")
        self.global_size, self.seed, self.shuffle, self.lengths = global_size, seed, shuffle, lengths
        self._latest: tuple[int, NDArray[np.int64]] | None = None
        """The epoch asked for last, and its places."""

    def positions(self, step: int) -> list[int]:
        """Indices of the `global_size` sequences of optimizer step `step` (0 is the first)."""
        return [position for _, position in self.places(step)]

    def places(self, step: int) -> list[tuple[int, int]]:
        """(pass, index) of those sequences: 0 is the first pass over its source, and each has another number."""
        first, last = step * self.global_size, (step + 1) * self.global_size
        found: list[tuple[int, int]] = []
        while first < last:
            epoch, offset = divmod(first, self.num_sequences)
            taken = min(last - first, self.num_sequences - offset)
            order = self._places_of(epoch)[offset : offset + taken]
            found += [(passes, index) for passes, index in order.tolist()]
            first += taken
        return found

    def _places_of(self, epoch: int) -> NDArray[np.int64]:
        """(pass, index) of the sequences of one epoch, in order; [L, 2]."""
        latest = self._latest
        if latest is not None and latest[0] == epoch:
            return latest[1]
        places = _epoch(self._sources, self.seed, epoch, self.shuffle)
        if self.lengths is not None:
            first = -epoch * self.num_sequences % self.global_size  # what completes the last step of the epoch before
            places = _grouped(places, self.lengths, self.global_size, first, [self.seed, epoch, 1])
        self._latest = epoch, places
        return places

    def epoch(self, step: int) -> float:
        """Epochs that lie behind when `step` steps are done."""
        return step * self.global_size / self.num_sequences

    def steps_for(self, epochs: float) -> int:
        """Optimizer steps of `epochs` epochs; the last batch is filled from the next one."""
        # 1e-9: a product such as 0.1 * 30 must not become a step more through rounding.
        return max(1, math.ceil(epochs * self.num_sequences / self.global_size - 1e-9))


def num_passed(num_sequences: int, weight: float) -> int:
    """How many sequences an epoch has of a source with `num_sequences`; whole passes count each of them once."""
    return round(num_sequences * weight)


@lru_cache(maxsize=4)
def _epoch(sources: tuple[tuple[int, float], ...], seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """(pass, index) of the sequences of one epoch, in order; [L, 2]."""
    dealt, start = [], 0
    for source, (size, weight) in enumerate(sources):
        whole, left = divmod(num_passed(size, weight), size)
        first = epoch * math.ceil(weight)  # the numbers of this epoch's passes through the source
        dealt += [_pass(first + number, start + np.arange(size)) for number in range(whole)]
        if left:
            drawn = np.random.Generator(np.random.PCG64([seed, epoch, source])).permutation(size)[:left]
            dealt.append(_pass(first + whole, start + np.sort(drawn)))
        start += size
    places = np.concatenate(dealt)
    return places[np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(places))] if shuffle else places


def _grouped(
    places: NDArray[np.int64], lengths: Lengths, global_size: int, first: int, seed: Sequence[int]
) -> NDArray[np.int64]:
    """The `places` of an epoch so that each step has sequences of about the same length.

    Those of a window of steps are sorted and cut into steps, and the steps of all windows are shuffled; the one with the longest
    sequence comes first, so that memory that is too small shows at once. The `first` places belong to the step that the
    epoch before has begun, those left at the end to one that the next completes: these stay where they are, sorted.
    """
    stop = first + (len(places) - first) // global_size * global_size if len(places) > first else len(places)
    head, tail = (part[np.argsort(lengths[part[:, 1]], kind="stable")] for part in (places[:first], places[stop:]))
    window_steps = max(1, min(WINDOW, (stop - first) // global_size // WINDOWS))
    bounds = [*range(first, stop, window_steps * global_size), stop]
    windows = [places[start:end] for start, end in pairwise(bounds)]
    steps = [
        step
        for window in windows
        for step in np.split(window[np.argsort(lengths[window[:, 1]], kind="stable")], len(window) // global_size)
    ]
    order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(steps)).tolist()
    longest = _longest(steps, lengths) if steps else 0
    order.sort(key=lambda number: number != longest)
    return np.concatenate([head, *(steps[number] for number in order), tail])


def _longest(steps: Sequence[NDArray[np.int64]], lengths: Lengths) -> int:
    """Number of the step with the longest sequence, the first of several."""
    return int(np.argmax([lengths[step[:, 1]].max() for step in steps]))


def _pass(number: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([np.full(len(indices), number), indices], axis=1)


def shard(indices: Sequence[int], rank: int, world_size: int, micro_size: int) -> list[list[int]]:
    """The micro-batches of `rank`: lists of `micro_size` of the `indices` of one global batch.

    `len(indices)` must be a multiple of world_size x micro_size (ValueError). Every index goes to exactly one rank.
    """
    width = world_size * micro_size
    if len(indices) % width:
        raise ValueError(f"{len(indices)} sequences do not divide into {world_size} ranks x {micro_size}")
    starts = range(rank * micro_size, len(indices), width)
    return [list(indices[start : start + micro_size]) for start in starts]
