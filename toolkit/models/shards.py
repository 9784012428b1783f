"""Which part of a parameter a tensor-parallel rank holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Which elements of a whole parameter the local one holds: cat([whole.narrow(dim, start, length) for start, length in spans], dim)."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    dim: int
    spans: tuple[tuple[int, int], ...]
    """(start, length) along `dim`, in the order in which they lie in the local parameter."""

    def cut(self, whole: Tensor) -> Tensor:
        """The local part of `whole`."""
        return torch.cat([whole.narrow(self.dim, start, length) for start, length in self.spans], self.dim)
