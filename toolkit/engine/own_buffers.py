"""Buffers that a model changes itself in training (running means, queues, codebooks): the same on every rank, saved and exported."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from toolkit.engine.batch_norm import moving_buffers
from toolkit.engine.process import num_ranks


class OwnBuffers:
    """The persistent buffers of `model` but for those of its batch norms.

    Each rank moves its own by its own examples. After every step they are made one: numbers are averaged over the ranks, and
    of others (counts, places in a queue) those of the first rank are taken.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = own_buffers(model)

    def describe(self) -> str:
        """One line for the user."""
        return f"buffers that the module may move: {', '.join(self._names)}; averaged over the ranks after every step"

    def __bool__(self) -> bool:
        return bool(self._names)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Them, as they are now, by name: a module may put others in their place."""
        return ((name, self._model.get_buffer(name)) for name in self._names)

    @torch.no_grad()
    def settle(self, group: dist.ProcessGroup | None) -> None:
        """Make those of all ranks of `group` the same. Collective."""
        ranks = num_ranks(group)
        if ranks == 1:
            return
        for _, buffer in self.tensors():
            share = buffer.double()
            if not buffer.is_floating_point() and dist.get_rank(group) != 0:
                share = torch.zeros_like(share)
            dist.all_reduce(share, group=group)
            buffer.copy_(share / ranks if buffer.is_floating_point() else share.round())


def own_buffers(model: nn.Module) -> list[str]:
    """Names of the persistent buffers of `model` but for those of batch norms."""
    saved = model.state_dict().keys() - moving_buffers(model)
    return [name for name, _ in model.named_buffers() if name in saved]
