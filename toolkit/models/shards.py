"""A part of a parameter, told in coordinates of the whole one: what loading, computing and checkpoints agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shard:
    """Which elements of a whole parameter the local one holds: cat([whole.narrow(dim, start, length) for start, length in spans], dim)."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    dim: int
    spans: tuple[tuple[int, int], ...]

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The local part of `whole`, a copy."""
        return torch.cat([whole.narrow(self.dim, start, length) for start, length in self.spans], self.dim)
