"""Tensor parallelism: makes each rank of a group compute with its part of the weights, as `models.tensor_plan` says.

Modules keep their classes, names and code; their parameters become the local part, and their `forward` gains what
happens at its edges. ZeRO stages and pipeline stages may be built from such a model alike.

Dropout: on whole activations the masks of a group agree as long as its ranks seed alike; on local heads and features
each rank draws its own numbers, so a run with dropout is not the same as with another degree.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.module_inject.layers import GatherFromTensorParallelRegion, ScatterToTensorParallelRegion
from torch import nn
from transformers.pytorch_utils import Conv1D

from toolkit.models.shards import Shard
from toolkit.models.tensor_plan import PerHead, TensorPlan
from toolkit.models.tensor_styles import Boundary, Enter, Leave

Forward = Callable[..., Any]


def apply_tensor_parallel(model: nn.Module, plan: TensorPlan, group: Any) -> None:
    """Turn `model` into this rank's part of it, in place.

    `model` is a skeleton on the meta device or holds its whole weights, and is not partitioned by ZeRO yet. `group`
    is the process group of `plan.degree` ranks that share one copy of the weights; all of them must be fed the same
    batches. Who replaces Parameter objects afterwards (loading into a skeleton) calls `mark_parameters` again.
    """
    rank = dist.get_rank(group)
    parameters = dict(model.named_parameters())
    for name, shard in plan.of_rank(rank).items():
        # The object stays, and with it whatever is tied to it.
        parameters[name].data = shard.cut(parameters[name].data).clone(memory_format=torch.contiguous_format)
    for name, boundary in plan.boundaries.items():
        _wrap(model.get_submodule(name), boundary, group, plan.degree, rank)
    for name, counts in plan.counts.items():
        _set_counts(model.get_submodule(name), counts)
    for name, per_head in plan.per_head.items():
        _cut_arguments(model.get_submodule(name), per_head, plan.degree, rank)
    mark_parameters(model, plan, group)


def mark_parameters(model: nn.Module, plan: TensorPlan, group: Any) -> None:
    """Say on each Parameter what it is: its Shard, for checkpoints and DeepSpeed's gradient norm; and sum gradients.

    Of a cut parameter the norm takes every rank's part, of a whole one the first rank's only. May be called again.
    """
    shards = plan.of_rank(dist.get_rank(group))
    for name, parameter in model.named_parameters():
        shard = shards.get(name)
        if shard is not None:
            parameter.shard = shard  # type: ignore[attr-defined]
            # runtime/utils.py, is_model_parallel_parameter
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        if name in plan.partial and parameter.requires_grad and not hasattr(parameter, "sums_gradient"):
            # A hook on the leaf runs before the gradient is accumulated, hence before any of ZeRO's hooks.
            parameter.register_hook(_Reduce(group))  # type: ignore[no-untyped-call]
            parameter.sums_gradient = True  # type: ignore[attr-defined]


def gradient_norm(model: nn.Module, group: Any) -> float:
    """L2 norm of the whole model's gradient, the same on every rank of the tensor group. Collective.

    What DeepSpeed computes with an mpu, for the one engine that clips without telling the norm (stage 0 in fp32).
    """
    is_first = dist.get_rank(group) == 0
    gradients = [
        parameter.grad
        for parameter in model.parameters()
        if parameter.grad is not None and (is_first or shard_of(parameter) is not None)
    ]
    square = torch.nn.utils.get_total_norm(gradients).double() ** 2
    dist.all_reduce(square, group=group)
    return float(square) ** 0.5


def shard_of(parameter: nn.Parameter) -> Shard | None:
    """What this rank holds of `parameter`; None where every rank of its tensor group holds it whole."""
    return getattr(parameter, "shard", None)


class _Reduce:
    """Sums a gradient over a group."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return _sum(gradient, self.group)


def _sum(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    # A copy: what autograd hands out may be shared, expanded or transposed.
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


# DeepSpeed's own pair (module_inject/layers.py, ColumnParallel and RowParallel) reduces a contiguous copy and throws it
# away where the tensor was not contiguous, and returns its input, which then may not be changed in place (Falcon does).
class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is the sum over the group."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        context.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(gradients[0], context.group), None


class _SumOutput(torch.autograd.Function):
    """Sum over the group whose gradient every rank passes on as it is."""

    @staticmethod
    def forward(_: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        return _sum(tensor, group)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _wrap(module: nn.Module, boundary: Boundary, group: Any, degree: int, rank: int) -> None:
    """Give `module.forward` what happens at its edges."""
    inner = _without_bias(module) if boundary.leave is Leave.SUM else module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        args = tuple(_enter(value, boundary.enter, group, degree, rank) for value in args)
        kwargs = {key: _enter(value, boundary.enter, group, degree, rank) for key, value in kwargs.items()}
        output = _leave(inner(*args, **kwargs), boundary, group, degree)
        if boundary.leave is Leave.SUM and getattr(module, "bias", None) is not None:
            output = output + module.bias
        return output

    module.forward = forward


def _enter(value: Any, enter: Enter, group: Any, degree: int, rank: int) -> Any:
    if enter is Enter.AS_IS or not torch.is_tensor(value) or not value.is_floating_point():
        return value
    if enter is Enter.CUT:
        sizes = (value.shape[-1] // degree,) * degree
        return ScatterToTensorParallelRegion.apply(group, value, sizes, rank)
    if enter is Enter.DIVIDE:
        return value / degree
    return _SumGradient.apply(value, group)  # type: ignore[no-untyped-call]


def _leave(output: Any, boundary: Boundary, group: Any, degree: int) -> Any:
    if boundary.leave is Leave.SUM:
        return _SumOutput.apply(output, group)  # type: ignore[no-untyped-call]
    if boundary.leave is Leave.GATHER:
        return GatherFromTensorParallelRegion.apply(group, output, (output.shape[-1],) * degree)
    if boundary.leave is Leave.LATENT:
        width = output.shape[-1] - boundary.rotary_width
        latent, rotary = output.split([width, boundary.rotary_width], dim=-1)
        return torch.cat([latent, _SumGradient.apply(rotary, group)], dim=-1)  # type: ignore[no-untyped-call]
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


def _set_counts(module: nn.Module, counts: dict[str, int]) -> None:
    for path, value in counts.items():
        owner, _, attribute = path.rpartition(".")
        target: Any = module
        if owner:
            # The config is shared by the whole model; this module alone counts locally.
            target = copy.copy(getattr(module, owner))
            setattr(module, owner, target)
        setattr(target, attribute, value)


def _cut_arguments(module: nn.Module, per_head: PerHead, degree: int, rank: int) -> None:
    """Hand `module.forward` the rank's own heads of arguments that have one entry per head."""
    plain = module.forward
    signature = inspect.signature(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        for name in per_head.arguments:
            if torch.is_tensor(call.arguments.get(name)):
                call.arguments[name] = _own_heads(call.arguments[name], per_head.heads, degree, rank)
        return plain(*call.args, **call.kwargs)

    module.forward = forward


def _own_heads(tensor: torch.Tensor, heads: int, degree: int, rank: int) -> torch.Tensor:
    """Of [B, heads, ...] or [B * heads, q, k] this rank's heads; what has no such dimension stays."""
    share = heads // degree
    if tensor.dim() == 4:
        return tensor.narrow(1, rank * share, share) if tensor.shape[1] == heads else tensor
    by_head = tensor.view(-1, heads, *tensor.shape[1:])
    return by_head.narrow(1, rank * share, share).flatten(0, 1)
