"""Reading any range of any state back, whichever ranks wrote it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from toolkit.checkpoint.boxes import boxes
from toolkit.checkpoint.manifest import Manifest, Piece, read_manifest, verify_hashes
from toolkit.engine import process
from toolkit.engine.fragments import AVERAGE, BUFFER, WEIGHT
from toolkit.engine.protocol import Engine
from toolkit.errors import CheckpointError
from toolkit.models.shards import Shard

FLOAT_BYTES = 4


class CheckpointReader:
    """The numbers of one checkpoint, by (parameter, state, start, length). Memory-mapped: only what is read is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._maps: dict[str, np.memmap] = {}
        self._pieces: dict[tuple[str, str], list[tuple[str, Piece, Shard | None]]] = defaultdict(list)
        self._scalars: dict[str, dict[str, float]] = {}
        for file in self.manifest.files:
            for piece in file.pieces:
                self._pieces[piece.name, piece.state].append((file.name, piece, self._shard(piece)))
            for name, values in file.scalars.items():
                self._scalars.setdefault(name, {}).update(values)

    def read(self, name: str, state: str, start: int, length: int, shard: Shard | None = None) -> torch.Tensor | None:
        """fp32 values [start, start + length) of `state`, or None where the checkpoint has no such state.

        The range is one of the flattened parameter, or of its part `shard`, however it was cut when it was written.
        """
        pieces = self._pieces.get((name, state))
        if pieces is None:
            return None
        shape = tuple(self.manifest.shapes[name])
        dim = shard.dim if shard is not None else next((written.dim for *_, written in pieces if written), 0)
        wanted = list(boxes(shape, shard, dim, start, length))
        values = np.empty(length, np.float32)
        missing = length
        for file, piece, written in pieces:
            stored = self._numbers(file, piece)
            for there in boxes(shape, written, dim, piece.start, piece.length):
                for met in filter(None, (here.meet(there) for here in wanted)):
                    met[0].view(values)[:] = met[1].view(stored)
                    missing -= met[0].rows * met[0].columns
        if missing:
            raise CheckpointError(
                f"{self.folder}: {missing} of the {length} numbers of {name} ({state}) are missing",
                expected="pieces that cover every parameter",
                do="continue from an older checkpoint",
            )
        return torch.from_numpy(values)

    def _shard(self, piece: Piece) -> Shard | None:
        if not piece.spans:
            return None
        return Shard(tuple(self.manifest.shapes[piece.name]), piece.dim, tuple((s[0], s[1]) for s in piece.spans))

    def _numbers(self, file: str, piece: Piece) -> np.ndarray:
        if file not in self._maps:
            self._maps[file] = np.memmap(self.folder / file, dtype="<f4", mode="r")
        base = piece.offset // FLOAT_BYTES
        return self._maps[file][base : base + piece.length]

    def scalars(self, name: str) -> dict[str, float]:
        """States of parameter `name` that are one number."""
        return self._scalars.get(name, {})

    def weight(self, name: str, *, averaged: bool = False) -> torch.Tensor:
        """The whole fp32 weight `name`, or the buffer, in its shape; `averaged`: its average where the run kept one."""
        shape = self.manifest.shapes[name]
        kinds = (AVERAGE, WEIGHT, BUFFER) if averaged else (WEIGHT, BUFFER)
        found = (self.read(name, kind, 0, int(np.prod(shape))) for kind in kinds)
        values = next(values for values in found if values is not None)
        return values.reshape(shape)

    @property
    def has_averages(self) -> bool:
        """Whether the run kept averages of its weights."""
        return any(state == AVERAGE for _, state in self._pieces)


def load(engine: Engine, folder: Path, rank: int, world_size: int) -> Manifest:
    """Put `engine` into the state saved in `folder`, whatever topology wrote it. Collective.

    Raises CheckpointError when the files are damaged or belong to another architecture.
    """
    reader = CheckpointReader(folder)
    process.agree(lambda: verify_hashes(folder, reader.manifest.files[rank::world_size]))
    _check_shapes(folder, reader.manifest.shapes, engine.shapes())
    engine.restore(reader.read, reader.scalars)
    engine.load_state(reader.manifest.run["engine"])
    return reader.manifest


def _check_shapes(folder: Path, stored: dict[str, list[int]], wanted: dict[str, list[int]]) -> None:
    if stored == wanted:
        return
    name = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))[0]
    raise CheckpointError(
        f"{folder} holds {name} {stored.get(name, 'not at all')}, the model has it {wanted.get(name, 'not at all')}",
        expected="the architecture that was trained",
        do="use the recipe of that run, or another --output_dir",
    )
