"""Which ranks share one copy of the weights, and which train beside them: the groups that DeepSpeed asks an mpu for."""

from __future__ import annotations

from typing import Any

import deepspeed.comm as dist


class TensorMesh:
    """The world as rows of `degree` consecutive ranks: a row is a tensor group, a column a data group.

    Consecutive ranks sit on one host, where the many all-reduces of a tensor group are cheapest. To be passed to
    deepspeed.initialize(mpu=...). Making one is collective.
    """

    def __init__(self, degree: int) -> None:
        world_size, rank = dist.get_world_size(), dist.get_rank()
        rows = [list(range(start, start + degree)) for start in range(0, world_size, degree)]
        columns = [list(range(start, world_size, degree)) for start in range(degree)]
        # Every rank must make every group, in the same order.
        self._tensor_group = _own([(ranks, dist.new_group(ranks)) for ranks in rows], rank)[1]
        self._data_ranks, self._data_group = _own([(ranks, dist.new_group(ranks)) for ranks in columns], rank)

    def get_model_parallel_group(self) -> Any:
        """Ranks that share one copy of the weights."""
        return self._tensor_group

    def get_model_parallel_rank(self) -> int:
        """This rank's place in its tensor group."""
        return int(dist.get_rank(self._tensor_group))

    def get_model_parallel_world_size(self) -> int:
        """The degree."""
        return int(dist.get_world_size(self._tensor_group))

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_data_parallel_group(self) -> Any:
        """Ranks that hold the same part of the weights and see different batches."""
        return self._data_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their numbers in the world."""
        return self._data_ranks

    def get_data_parallel_rank(self) -> int:
        """Which share of each global batch is this rank's."""
        return int(dist.get_rank(self._data_group))

    def get_data_parallel_world_size(self) -> int:
        """Number of shares of a global batch."""
        return int(dist.get_world_size(self._data_group))


def _own(groups: list[tuple[list[int], Any]], rank: int) -> tuple[list[int], Any]:
    return next((ranks, group) for ranks, group in groups if rank in ranks)
