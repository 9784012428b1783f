"""Examples of a global batch as they are collated: with what their task draws or decodes, by several threads at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from toolkit.data.example import Example, Kind

Place: TypeAlias = tuple[int, ...]
"""What decides what is drawn for an example: the seed, the pass over the data, the example's number."""
Placed: TypeAlias = tuple[Place, Callable[[], Example]]
"""An example's place, and what gives the example as it is kept."""


@dataclass(frozen=True)
class Drawing:
    """Makes kept examples ready to be collated. What comes out depends on their places alone, not on who draws when."""

    kind: Kind
    is_trained: bool = True
    """False: for an evaluation."""
    pool: ThreadPoolExecutor | None = None
    """Threads that draw; None: the caller's own."""

    def of(self, chosen: Sequence[Sequence[Placed]], wanted: Sequence[Sequence[int]]) -> list[list[list[Example]]]:
        """The micro-batches `wanted`, lists of positions in the global batch `chosen`, whose sequences are lists of examples.

        Where the kind mixes, position p is mixed with position p ^ 1: which examples meet depends on the global batch
        alone. The neighbour is drawn here, too, if it is in another rank's part.
        """
        mine = sorted({position for positions in wanted for position in positions})
        mixes = self.is_trained and self.kind.mixes
        needed = sorted({*mine, *(_neighbour(position, len(chosen)) for position in mine)}) if mixes else mine
        found = dict(
            zip(needed, self._map(lambda position: [self._drawn(*it) for it in chosen[position]], needed), strict=True)
        )
        if not mixes:
            return [[[example for example, _ in found[at]] for at in positions] for positions in wanted]
        return [[[self._mixed(found, at, len(chosen))] for at in positions] for positions in wanted]

    def _map(self, function: Callable[[int], Any], positions: Sequence[int]) -> Iterator[Any]:
        return map(function, positions) if self.pool is None else self.pool.map(function, positions)

    def _drawn(self, place: Place, kept: Callable[[], Example]) -> tuple[Example, np.random.Generator | None]:
        if not self.kind.transforms:
            return kept(), None
        random = np.random.Generator(np.random.PCG64(list(place)))
        return self.kind.transform(kept(), random, is_trained=self.is_trained), random

    def _mixed(self, found: Mapping[int, list[tuple[Example, Any]]], position: int, size: int) -> Example:
        [(example, random)], [(other, _)] = found[position], found[_neighbour(position, size)]
        return self.kind.mix(example, other, random)


def _neighbour(position: int, size: int) -> int:
    """The other position of a pair; the last one of an odd number is its own."""
    other = position ^ 1
    return other if other < size else position


@contextmanager
def drawing(kind: Kind, workers: int, *, is_trained: bool = True) -> Iterator[Drawing]:
    """A Drawing by `workers` threads; none are started where nothing is drawn, and for 0 the caller's own thread draws."""
    if not workers or not kind.transforms:
        yield Drawing(kind, is_trained)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="draw") as pool:
        yield Drawing(kind, is_trained, pool)
