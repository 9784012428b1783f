"""Several groups of processes that take turns: while one takes a step, the others wait without computing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore

PATIENCE = timedelta(minutes=10)


class Turns:
    """One process of `side`; each of `sides` has `ranks` processes, all of which see the file `path`."""

    def __init__(self, path: Path, sides: Sequence[str], ranks: int, side: str) -> None:
        self._store = FileStore(str(path), len(sides) * ranks)
        self._sides, self._ranks, self._side = len(sides), ranks, sides.index(side)

    @contextmanager
    def turn(self, step: int) -> Iterator[None]:
        """Until it is this side's turn to take `step`, wait; who comes first changes from step to step."""
        number = step * self._sides + (self._side + step) % self._sides
        if number:
            self._store.wait([f"done {number - 1}"], PATIENCE)
        yield
        if self._store.add(f"ranks {number}", 1) == self._ranks:
            self._store.set(f"done {number}", "")
