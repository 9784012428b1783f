"""Which sequences make up optimizer step s. Depends on the seed and the step, never on the world size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Order:
    """The endless concatenation of one permutation per epoch, cut into steps of `global_size` sequences."""

    def __init__(self, num_sequences: int, global_size: int, seed: int, shuffle: bool) -> None:
        if num_sequences < 1 or global_size < 1:
            raise ValueError(f"an order needs sequences and a batch size: {num_sequences=}, {global_size=}")
        self.num_sequences, self.global_size = num_sequences, global_size
        self.seed, self.shuffle = seed, shuffle

    def positions(self, step: int) -> list[int]:
        """Indices of the `global_size` sequences of optimizer step `step` (0 is the first)."""
        return [position for _, position in self.places(step)]

    def places(self, step: int) -> list[tuple[int, int]]:
        """(pass over the data, index) of those sequences; 0 is the first pass."""
        first, last = step * self.global_size, (step + 1) * self.global_size
        found: list[tuple[int, int]] = []
        while first < last:
            epoch, offset = divmod(first, self.num_sequences)
            taken = min(last - first, self.num_sequences - offset)
            order = _permutation(self.num_sequences, self.seed, epoch, self.shuffle)[offset : offset + taken]
            found += [(epoch, index) for index in order.tolist()]
            first += taken
        return found

    def epoch(self, step: int) -> float:
        """Passes over the data that lie behind when `step` steps are done."""
        return step * self.global_size / self.num_sequences

    def steps_for(self, epochs: float) -> int:
        """Optimizer steps that see every sequence `epochs` times; the last batch is filled from the next pass."""
        # 1e-9: a product such as 0.1 * 30 must not become a step more through rounding.
        return max(1, math.ceil(epochs * self.num_sequences / self.global_size - 1e-9))


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    if not shuffle:
        return np.arange(size)
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)


def shard(indices: Sequence[int], rank: int, world_size: int, micro_size: int) -> list[list[int]]:
    """The micro-batches of `rank`: lists of `micro_size` of the `indices` of one global batch.

    `len(indices)` must be a multiple of world_size x micro_size (ValueError). Every index goes to exactly one rank.
    """
    width = world_size * micro_size
    if len(indices) % width:
        raise ValueError(f"{len(indices)} sequences do not divide into {world_size} ranks x {micro_size}")
    starts = range(rank * micro_size, len(indices), width)
    return [list(indices[start : start + micro_size]) for start in starts]
