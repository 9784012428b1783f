"""Bytes that live tensors hold, counted exactly as they come and go: what an allocator, or a resident set, only shows roughly."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each storage once, from the operation that returns it until nobody refers to it. Fake tensors count as real ones."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here; asking torch's compiler to stay out costs time at each of thousands of operations.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()

    def add(self, tensors: Any) -> None:
        """Count tensors that were there before."""
        for value in (tensors,) if isinstance(tensors, torch.Tensor) else tree_leaves(tensors):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self._count(value.untyped_storage())

    def begin_peak(self) -> int:
        """Begin a new peak; bytes that are held now."""
        self.peak = self.now
        return self.now

    def made(self, size: int) -> None:
        """A storage of `size` bytes was not there before."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        size, held = storage.nbytes(), self._known.get(storage)
        if held is None:
            # Of what it holds when it goes, not of what it held when it came: it may be resized.
            self._known[storage] = held = [0]
            self.made(size)
            weakref.finalize(storage, self._forget, held)
        self.now += size - held[0]
        held[0] = size
        self.peak = max(self.peak, self.now)

    def _forget(self, held: list[int]) -> None:
        self.now -= held[0]
        held[0] = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.prim.device.default:
            # Fake tensors are asked for their device by every second operation.
            fake = getattr(args[0], "fake_device", None)
            return function(*args) if fake is None else fake
        result = function(*args, **(kwargs or {}))
        self.add(result)
        return result
