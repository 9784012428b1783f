"""What a rank sends through torch.distributed, counted operation by operation."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LEAST = 64
"""Elements. Less are norms, losses and counts."""

RINGS = {"allreduce": 2.0, "allgather": 1.0, "_allgather": 1.0, "reduce_scatter": 1.0, "_reduce_scatter": 1.0}
RINGS |= {"reduce": 1.0, "broadcast": 1.0, "alltoall": 1.0, "gather": 1.0, "scatter": 1.0}
"""Beginning of an operator's name -> times that the whole of a tensor travels around a ring, less the part that stays."""

PASSED = ("send", "recv_")


class Traffic(TorchDispatchMode):
    """Bytes that this rank sends while it is entered; from one rank to another those that it gets as well."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self._note(function._schema.name.removeprefix("c10d::"), args)
        return function(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        whole = max(_bytes(args[0]), _bytes(args[1]))
        if name.startswith(PASSED):
            self.sent += whole
            return
        times = next((times for begin, times in RINGS.items() if name.startswith(begin)), None)
        if times is not None:
            groups = [value for value in args if isinstance(value, torch.ScriptObject)]
            ranks = dist.ProcessGroup.unbox(groups[0]).size()
            self.sent += times * whole * (ranks - 1) / ranks


def _bytes(values: Any) -> int:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    numbers = sum(value.numel() for value in tensors)
    return sum(value.numel() * value.element_size() for value in tensors) if numbers >= LEAST else 0
