"""Seeds of dropout and noise: one for each micro-batch, and from it one for each rank that must draw its own."""

from __future__ import annotations

import hashlib
import struct

from toolkit.recipe.mesh import Mesh


def mix(*numbers: int) -> int:
    """Hash non-negative 64-bit `numbers` to a seed of 63 bits; other numbers, or more of them, give another seed.

    On a CPU torch's generator keeps only the last 32 bits of a seed; a hash has its entropy in every bit.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def part_seed(seed: int, mesh: Mesh, rank: int) -> int:
    """Seed of what `rank` computes of the micro-batch that has `seed`.

    Pipeline stages have other layers and sequence ranks other tokens, so they draw their own numbers. The ranks of a
    tensor group must draw the same for the activations they share (see `toolkit.engine.tensor_random` for the others).
    """
    return mix(seed, mesh.coordinate(rank, "pipeline"), mesh.coordinate(rank, "sequence"))
