"""A vocabulary divided among the ranks of a tensor group: each holds some rows of the output head and of the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def even_sizes(total: int, degree: int) -> tuple[int, ...]:
    """Rows of each of `degree` ranks; where `total` does not divide, the first ones have one more."""
    return tuple(total // degree + (rank < total % degree) for rank in range(degree))


@dataclass(frozen=True)
class VocabularyPart:
    """The rows [start, start + size) that rank `rank` of `group` holds."""

    group: Any
    rank: int
    sizes: tuple[int, ...]
    """Rows of each rank, in order."""

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    @property
    def size(self) -> int:
        return self.sizes[self.rank]

    @property
    def total(self) -> int:
        """Rows of the whole vocabulary."""
        return sum(self.sizes)

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where `ids` lie among this rank's rows (0 for those of other ranks), and which of them are this rank's."""
        # Of other ranks' rows no rank would notice that there is none; on a GPU nothing waits for the answer.
        torch._assert_async(((ids >= 0) & (ids < self.total)).all(), f"a token id is outside [0, {self.total})")
        rows = ids - self.start
        own = (rows >= 0) & (rows < self.size)
        return rows.masked_fill(~own, 0), own

    def gather(self, values: Tensor) -> Tensor:
        """[P, ...]: `values` of every rank, which all have the same shape."""
        found = values.new_empty(len(self.sizes) * values.shape[0], *values.shape[1:])
        dist.all_gather_into_tensor(found, values.contiguous(), group=self.group)
        return found.view(len(self.sizes), *values.shape)

    def sum_(self, values: Tensor) -> None:
        """Sum over the ranks, in place."""
        dist.all_reduce(values, group=self.group)
