"""Each layer's input in host memory while it waits for its backward pass, copied beside the computation.

Activation checkpointing keeps one tensor per layer, the hidden states that enter it. Here that tensor goes to pinned
host memory on a stream of its own while the layer computes, and comes back one layer ahead of the backward pass. The
host never waits: streams wait for each other's events. On the device are at most two inputs in either direction: in
the forward pass the last IN_FLIGHT, which the backward pass then takes as they are; in the backward pass the layer's own
and the next one's.

A tensor's memory is given back only after the computing stream has been told to wait for the copy that reads or fills
it, so the allocator, which orders by that stream, needs to know nothing of the other one.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

IN_FLIGHT = 2
"""Layer inputs whose copies to the host may be under way while their device memory is kept."""

HIDDEN = "hidden_states"
"""The keyword by which some architectures hand a layer its input."""


class ActivationOffload:
    """A checkpoint function for transformers' layers that keeps their inputs on the host."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.stream: Any = torch.cuda.Stream(device) if self.is_cuda else None  # type: ignore[no-untyped-call]
        self.tensors = self.bytes = 0
        """Moved to the host so far."""
        self._free: list[Tensor] = []
        self._in_flight: deque[tuple[_Kept, Tensor]] = deque()
        self._kept: list[weakref.ref[_Kept]] = []
        self._ahead: _Kept | None = None

    def use_in(self, model: nn.Module) -> None:
        """Take the place of the checkpoint function in every layer of `model` that has its checkpointing on."""
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = self.checkpoint  # type: ignore[assignment]

    def checkpoint(self, function: Any, *args: Any) -> Any:
        """`function(*args)`, computed again in the backward pass from its input, the first floating tensor of `args`."""
        if not args and isinstance(function, partial) and HIDDEN in function.keywords:
            # By keyword it would stay with the function, on the device.
            keywords = {key: value for key, value in function.keywords.items() if key != HIDDEN}
            args = (function.keywords[HIDDEN],)
            function = _by_keyword(partial(function.func, *function.args, **keywords))
        hidden = next((value for value in args if torch.is_tensor(value) and value.is_floating_point()), None)
        where = None if hidden is None else (hidden.data_ptr(), hidden.shape)

        def pack(tensor: Tensor) -> Any:
            return self._keep(tensor) if (tensor.data_ptr(), tensor.shape) == where else tensor

        # What the function itself saves goes to the hooks of the checkpoint, inside these: they see its inputs alone.
        with saved_tensors_hooks(pack, self._give):
            return checkpoint(function, *args, use_reentrant=False)

    @torch.no_grad()
    def _keep(self, tensor: Tensor) -> _Kept:
        """Begin the copy of `tensor` to the host."""
        kept = _Kept(self, self._buffer(tensor.nbytes), tensor)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with self._aside():
            kept.host.copy_(tensor, non_blocking=True)
            kept.record()
        self.tensors += 1
        self.bytes += tensor.nbytes
        self._kept = [known for known in self._kept if known() is not None]
        kept.before = self._kept[-1] if self._kept else None
        self._kept.append(weakref.ref(kept))
        self._in_flight.append((kept, tensor))
        if len(self._in_flight) > IN_FLIGHT:
            oldest, _ = self._in_flight.popleft()
            oldest.wait()
        return kept

    @torch.no_grad()
    def _give(self, kept: Any) -> Tensor:
        """The tensor again, on its device; begins to fetch that of the layer before."""
        if not isinstance(kept, _Kept):
            tensor: Tensor = kept
            return tensor
        there = next((tensor for known, tensor in self._in_flight if known is kept), None)
        if there is None:
            if kept is not self._ahead:
                self._drop_ahead()
                kept.fetch()
            kept.wait()
            there, kept.device_copy = kept.device_copy, None
            self._ahead = None
        else:
            kept.wait()
            self._in_flight = deque(entry for entry in self._in_flight if entry[0] is not kept)
        before = kept.before() if kept.before is not None else None
        if before is not None and all(known is not before for known, _ in self._in_flight):
            self._drop_ahead()
            before.fetch()
            self._ahead = before
        assert there is not None, "it has just been fetched"
        return there

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.wait()
            self._ahead.device_copy, self._ahead = None, None

    def _buffer(self, size: int) -> Tensor:
        """Host memory of at least `size` bytes: the smallest that is free and large enough, pinned where that means something."""
        self._free.sort(key=Tensor.numel)
        for index, flat in enumerate(self._free):
            if flat.numel() >= size:
                return self._free.pop(index)
        if self._free:
            # Too small for this batch, it would only lie beside the new one.
            self._free.pop()
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.is_cuda)

    def _aside(self) -> Any:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class _Kept:
    """One layer's input on the host. When nobody needs it any more its memory is free for the next one.

    Whoever gets the memory writes to it on the stream that reads it for this one, hence afterwards.
    """

    def __init__(self, owner: ActivationOffload, buffer: Tensor, tensor: Tensor) -> None:
        self.owner, self._buffer = owner, buffer
        self.host = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.device_copy: Tensor | None = None
        self.before: weakref.ref[_Kept] | None = None
        """The input of the layer before, which the backward pass wants next."""
        self._event: Any = torch.cuda.Event() if owner.is_cuda else None  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """Mark the end of the copy that was queued last."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Let the computing stream wait for that copy."""
        if self._event is not None:
            self._event.wait()

    def fetch(self) -> None:
        """Begin the copy to the device, once what the computing stream has queued by now is done."""
        stream = self.owner.stream
        device = self.host.device if stream is None else stream.device
        self.device_copy = torch.empty(self.host.shape, dtype=self.host.dtype, device=device)
        if stream is not None:
            # The memory may have been another tensor's until now.
            stream.wait_stream(torch.cuda.current_stream(device))
        with self.owner._aside():
            self.device_copy.copy_(self.host, non_blocking=True)
            self.record()

    def __del__(self) -> None:
        self.owner._free.append(self._buffer)


def _by_keyword(function: Any) -> Any:
    def forward(hidden: Tensor) -> Any:
        return function(**{HIDDEN: hidden})

    return forward
