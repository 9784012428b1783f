"""Which elements of a whole parameter one rank of a tensor-parallel group holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """Which elements of a whole parameter the local one holds: cat([whole.narrow(dim, start, length) for start, length in spans], dim)."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    dim: int
    spans: tuple[tuple[int, int], ...]
    """(start, length) along `dim`, in the order in which they lie in the local parameter."""

    @property
    def share(self) -> float:
        """The local part of the whole, 0 to 1."""
        return sum(length for _, length in self.spans) / self.shape[self.dim]

    def cut(self, whole: Tensor) -> Tensor:
        """The local part of `whole`: a view where there is one span, a copy where there are several."""
        parts = [whole.narrow(self.dim, start, length) for start, length in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)


def shard_of(parameter: nn.Parameter) -> Shard | None:
    """What this rank holds of `parameter`; None where every rank of its tensor group holds it whole."""
    shard: Shard | None = getattr(parameter, "shard", None)
    return shard
