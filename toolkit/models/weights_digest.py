"""Whether two checkpoints hold the same weights, told from samples: hashing all of a large one takes minutes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from toolkit.models.assets import resolve
from toolkit.models.weight_files import weight_files

BLOCK_BYTES = 4096
BLOCKS = 64
"""Blocks read of each file, spread evenly over it: training moves every matrix, so that any of them tells."""


def weights_digest(name: str) -> str | None:
    """SHA-256 over sizes and samples of the weight files of the checkpoint `name`, wherever it lies; None without any."""
    files = weight_files(Path(resolve(name, weights=True)))
    digest = hashlib.sha256()
    for file in files:
        _add(digest, file)
    return digest.hexdigest() if files else None


def _add(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    if size <= BLOCKS * BLOCK_BYTES:
        digest.update(file.read_bytes())
        return
    with file.open("rb") as stream:
        for block in range(BLOCKS):
            stream.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(stream.read(BLOCK_BYTES))
