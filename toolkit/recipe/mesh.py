"""How the ranks of a run are arranged: which of them share a model, a sequence, a layer.

Rank order is that of DeepSpeed's PipeModelDataParallelTopology (runtime/pipe/topology.py), axes pipeline, data, tensor
with the last running fastest, and sequence between data and tensor: ranks that talk most are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import RecipeError, plural
from toolkit.recipe.update import Parallel

AXES = ("pipeline", "data", "sequence", "tensor")

DEGREES = ("pipeline", "tensor", "sequence")
"""Fields of the parallel section that say how many ranks share one micro-batch."""


@dataclass(frozen=True)
class Mesh:
    """Sizes of the four axes; their product is the world size."""

    pipeline: int = 1
    data: int = 1
    sequence: int = 1
    tensor: int = 1

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.pipeline * self.data * self.sequence * self.tensor

    @property
    def replica_ranks(self) -> int:
        """Ranks that together compute one micro-batch."""
        return self.world_size // self.data

    @property
    def gradient_ranks(self) -> int:
        """Ranks that compute different tokens with the same weights: gradients are averaged over them."""
        return self.data * self.sequence

    def gradient_rank(self, rank: int) -> int:
        """Place of `rank` among those, from 0."""
        return self.coordinate(rank, "data") * self.sequence + self.coordinate(rank, "sequence")

    @property
    def is_plain(self) -> bool:
        """Data parallelism only."""
        return self.replica_ranks == 1

    def size(self, axis: str) -> int:
        """Ranks along `axis`, one of AXES."""
        return int(getattr(self, axis))

    def coordinate(self, rank: int, axis: str) -> int:
        """Place of `rank` along `axis`, from 0."""
        stride = 1
        for name in reversed(AXES):
            if name == axis:
                break
            stride *= self.size(name)
        return rank // stride % self.size(axis)

    def groups(self, *axes: str) -> list[list[int]]:
        """Ranks, cut into groups that differ only along `axes`; each group and the list of them in rising order."""
        fixed = [axis for axis in AXES if axis not in axes]
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            found.setdefault(tuple(self.coordinate(rank, axis) for axis in fixed), []).append(rank)
        return list(found.values())

    def bubble(self, micro_batches: int) -> float:
        """Share of a step in which a pipeline stage waits, under one-forward-one-backward (Narayanan et al. 2021)."""
        return (self.pipeline - 1) / (micro_batches + self.pipeline - 1)

    def describe(self) -> str:
        """Such as "2 pipeline stages x 2 data-parallel x 2 tensor-parallel"."""
        names = {"pipeline": "pipeline stages", "data": "data-parallel", "sequence": "sequence-parallel"}
        parts = [f"{self.size(axis)} {names.get(axis, 'tensor-parallel')}" for axis in AXES if self.size(axis) > 1]
        return " x ".join(parts) or "1 rank"


def model_ranks(parallel: Parallel) -> int:
    """Ranks over which one copy of the model is spread: pipeline stages x tensor-parallel ranks."""
    return parallel.pipeline * parallel.tensor


def mesh_of(parallel: Parallel, world_size: int) -> Mesh:
    """The arrangement of `world_size` ranks; data parallelism is what pipeline, tensor and sequence leave.

    Raises RecipeError when they do not divide the world size.
    """
    degrees = {"pipeline": parallel.pipeline, "tensor": parallel.tensor, "sequence": parallel.sequence}
    together = parallel.pipeline * parallel.tensor * parallel.sequence
    if world_size % together:
        named = " x ".join(f"parallel.{name}={degree}" for name, degree in degrees.items() if degree > 1)
        raise RecipeError(
            f"{named} does not divide the {plural(world_size, 'process', 'processes')} of this run",
            expected=f"a multiple of {together} processes",
            do=f"start {(world_size // together + 1) * together} processes, or lower a degree",
        )
    return Mesh(parallel.pipeline, world_size // together, parallel.sequence, parallel.tensor)
