"""What the loss of an example needs to know of the others of its global batch, found before any of them is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from toolkit.engine.process import num_ranks
from toolkit.engine.protocol import Batch


@dataclass(frozen=True)
class Comparison:
    """The two halves that a task gives; see `toolkit.tasks.base.Task.look`."""

    look: Callable[[nn.Module, Batch], Batch]
    """What a micro-batch has to say: tensors [n, ...], the same n in every micro-batch."""
    compare: Callable[[Batch], Batch]
    """Of the same for a whole global batch, [N, ...], what each of its examples needs, [N, ...]."""

    def of_each(self, found: Sequence[Batch]) -> list[Batch]:
        """What the examples of each of this rank's micro-batches need; `found` is what `look` saw in them. Collective.

        Ranks take turns in the global batch, one micro-batch at a time (`toolkit.data.order.shard`).
        """
        ranks = num_ranks()
        rank = dist.get_rank() if ranks > 1 else 0
        gathered = {name: _gathered([part[name] for part in found], ranks) for name in found[0]}  # [A, R, n, ...]
        needed = self.compare({name: values.flatten(0, 2) for name, values in gathered.items()})
        size = next(iter(gathered.values())).shape[2]
        starts = [(index * ranks + rank) * size for index in range(len(found))]
        return [{name: values[start : start + size] for name, values in needed.items()} for start in starts]


def _gathered(parts: Sequence[torch.Tensor], ranks: int) -> torch.Tensor:
    """[A, R, n, ...]: `parts`, A tensors [n, ...] of each of R ranks."""
    mine = torch.stack(list(parts)).contiguous()
    if ranks == 1:
        return mine.unsqueeze(1)
    everyone = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone, dim=1)
