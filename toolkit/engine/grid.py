"""The process groups of a mesh, in the shape in which DeepSpeed's engines ask for them (an "mpu")."""

from __future__ import annotations

import deepspeed
import torch.distributed as dist
from deepspeed.utils import groups as deepspeed_groups

from toolkit.recipe.mesh import Mesh


class Grid:
    """Groups of this rank along the axes of `mesh`. Every rank must build it at the same time.

    To DeepSpeed a sequence-parallel rank is a data-parallel one: gradients are averaged and ZeRO's shares are spread
    over both axes. Only the batch arithmetic, which asks get_data_parallel_world_size, must know the difference.
    """

    def __init__(self, mesh: Mesh, rank: int) -> None:
        self.mesh, self.rank = mesh, rank
        self.data = _group(mesh, rank, "data")
        self.replicas = _group(mesh, rank, "data", "sequence")
        self.sequence = _group(mesh, rank, "sequence")
        self.tensor = _group(mesh, rank, "tensor")
        self.pipeline = _group(mesh, rank, "pipeline")
        self.model = _group(mesh, rank, "pipeline", "tensor")
        self.ends = _made(rank, [sorted({ranks[0], ranks[-1]}) for ranks in mesh.groups("pipeline")])
        """First and last stage of this rank's pipeline, or None between them."""

    # What DeepSpeedEngine, its configuration and its ZeRO optimizers call.

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.data

    def get_data_parallel_rank(self) -> int:
        return self.mesh.coordinate(self.rank, "data")

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.data

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self.data)

    def get_sequence_data_parallel_world_size(self) -> int:
        return self.mesh.gradient_ranks

    def get_sequence_data_parallel_rank(self) -> int:
        return self.mesh.gradient_rank(self.rank)

    def get_sequence_data_parallel_group(self) -> dist.ProcessGroup:
        return self.replicas

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.pipeline * self.mesh.tensor

    def get_model_parallel_rank(self) -> int:
        return dist.get_rank(self.model)

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self.model

    def get_tensor_model_parallel_world_size(self) -> int:
        return self.mesh.tensor

    def get_tensor_model_parallel_rank(self) -> int:
        return self.mesh.coordinate(self.rank, "tensor")

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self.tensor


_MADE: dict[tuple[tuple[int, ...], ...], dist.ProcessGroup | None] = {}
"""Groups made in this process group's life: making one is collective and keeps sockets open."""


def _group(mesh: Mesh, rank: int, *axes: str) -> dist.ProcessGroup:
    group = _made(rank, mesh.groups(*axes))
    assert group is not None, "every rank is in a group along each axis"
    return group


def _made(rank: int, groups: list[list[int]]) -> dist.ProcessGroup | None:
    key = tuple(map(tuple, groups))
    if key not in _MADE:
        _MADE[key] = None
        for members in groups:
            group = deepspeed.comm.new_group(members)
            if rank in members:
                _MADE[key] = group
    return _MADE[key]


def forget() -> None:
    """Drop what belongs to a process group that has ended, and what DeepSpeed remembers of the last engine's grid."""
    _MADE.clear()
    release()


def release() -> None:
    """Let the next engine of this process have another grid: DeepSpeed keeps the first in a module variable."""
    deepspeed_groups.mpu = None
