"""Where whole activations become local and local ones whole: the collectives of tensor parallelism, with gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.module_inject.layers import GatherFromTensorParallelRegion, ScatterToTensorParallelRegion
from torch import nn
from transformers.pytorch_utils import Conv1D

from toolkit.engine.tensor_random import LocalRandom
from toolkit.models.tensor_styles import Boundary, Enter, Leave
from toolkit.models.vocabulary import VocabularyPart

Forward = Callable[..., Any]


def sum_over(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """Sum over the group, in a new tensor: what autograd hands out may be shared, expanded or transposed."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


# DeepSpeed's own pair (module_inject/layers.py, ColumnParallel and RowParallel) reduces a contiguous copy and throws it
# away where the tensor was not contiguous, and returns its input, which then may not be changed in place (Falcon does).
class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is the sum over the group."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, fan: _Fan) -> torch.Tensor:
        context.fan = fan
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        context.fan.forget()
        return sum_over(gradients[0], context.fan.group), None


class _SumOutput(torch.autograd.Function):
    """Sum over the group whose gradient every rank passes on as it is."""

    @staticmethod
    def forward(_: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        return sum_over(tensor, group)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Fan:
    """Hands a whole tensor to the modules that use it locally, and sums its gradient once for all of them.

    Query, key and value read the same hidden states one after the other, and so do gate and up: remembering the last
    tensor saves three of five all-reduces of a layer's backward pass.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.forget()

    def forget(self) -> None:
        """Let go of the last tensor, and of the graph behind it."""
        self._tensor: weakref.ref[torch.Tensor] | None = None
        self._version = 0
        self._local: torch.Tensor | None = None

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and tensor.requires_grad):
            return tensor
        known = self._tensor is not None and self._tensor() is tensor and self._version == tensor._version
        if self._local is None or not known:
            self._local = _SumGradient.apply(tensor, self)  # type: ignore[no-untyped-call]
            self._tensor, self._version = weakref.ref(tensor), tensor._version
        return self._local


class Edges:
    """Puts the collectives of one tensor group around modules, and draws each rank's own random numbers between them."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.degree, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._fan = _Fan(group)
        self._random = LocalRandom(self.rank)

    def wrap(self, module: nn.Module, boundary: Boundary) -> None:
        """Give `module.forward` what happens at its edges."""
        inner = _without_bias(module) if boundary.leave is Leave.SUM else module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            args = tuple(self._enter(value, boundary.enter) for value in args)
            kwargs = {key: self._enter(value, boundary.enter) for key, value in kwargs.items()}
            if module.training and boundary.enter is Enter.SUM_GRADIENT and boundary.leave is not Leave.GATHER:
                self._random.enter()
            elif boundary.enter is Enter.WHOLE:
                self._random.leave()
            output = self._leave(inner(*args, **kwargs), boundary)
            if boundary.leave is Leave.SUM:
                self._random.leave()
            if boundary.leave is Leave.SUM and getattr(module, "bias", None) is not None:
                output = output + module.bias
            return output

        # A mark for `toolkit.models.compile`.
        forward.has_collectives = True  # type: ignore[attr-defined]
        module.forward = forward

    def wrap_adapter(self, module: nn.Module, boundary: Boundary) -> None:
        """The same for one matrix of an adapter, whose layer has its own edges and draws by itself."""
        plain, fan = module.forward, _Fan(self.group)

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            entered = fan(hidden) if boundary.enter is Enter.SUM_GRADIENT else self._enter(hidden, boundary.enter)
            output: torch.Tensor = self._leave(plain(entered), boundary)
            return output

        forward.has_collectives = True  # type: ignore[attr-defined]
        module.forward = forward

    def wrap_dropout(self, module: nn.Module, *, is_local: bool) -> None:
        """Let `module` draw the same for a whole tensor on all ranks, for a local one each rank its own."""
        plain = module.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            with self._random.local() if is_local else self._random.common():
                dropped: torch.Tensor = plain(hidden)
            return dropped

        module.forward = forward

    def wrap_embedding(self, module: Any, part: VocabularyPart) -> None:
        """Let `module`, an embedding with this rank's rows only, look up the tokens of the whole vocabulary."""
        inner = module.forward

        def forward(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            rows, own = part.local(ids)
            # Elsewhere it stays the vocabulary's: who reads it means a token.
            padding: Any = module.padding_idx
            is_own = padding is not None and part.start <= padding < part.start + part.size
            module.padding_idx = padding - part.start if is_own else None
            try:
                found = inner(rows, *args, **kwargs)
            finally:
                module.padding_idx = padding
            found = found.masked_fill(~own.unsqueeze(-1), 0.0)
            return _SumOutput.apply(found, self.group)  # type: ignore[no-untyped-call, no-any-return]

        module.forward = forward

    def _enter(self, value: Any, enter: Enter) -> Any:
        if enter in (Enter.AS_IS, Enter.WHOLE) or not torch.is_tensor(value) or not value.is_floating_point():
            return value
        if enter is Enter.CUT:
            sizes = (value.shape[-1] // self.degree,) * self.degree
            return ScatterToTensorParallelRegion.apply(self.group, value, sizes, self.rank)
        if enter is Enter.DIVIDE:
            return value / self.degree
        return self._fan(value)

    def _leave(self, output: Any, boundary: Boundary) -> Any:
        if boundary.leave is Leave.SUM:
            return _SumOutput.apply(output, self.group)  # type: ignore[no-untyped-call]
        if boundary.leave is Leave.GATHER:
            widths = boundary.widths or (output.shape[-1],) * self.degree
            return GatherFromTensorParallelRegion.apply(self.group, output, widths)
        if boundary.leave is Leave.LATENT:
            widths = [output.shape[-1] - boundary.rotary_width, boundary.rotary_width]
            latent, rotary = output.split(widths, dim=-1)
            return torch.cat([latent, self._fan(rotary)], dim=-1)
        return output


def _without_bias(module: nn.Module) -> Forward:
    """`module.forward` as if it had no bias, which is to be added once, after the sum."""
    plain = module.forward
    if getattr(module, "bias", None) is None:
        return plain
    if isinstance(module, Conv1D):
        return lambda hidden: hidden @ module.weight

    def forward(*args: Any, **kwargs: Any) -> Any:
        bias = module._parameters["bias"]
        module._parameters["bias"] = None
        try:
            return plain(*args, **kwargs)
        finally:
            module._parameters["bias"] = bias

    return forward
