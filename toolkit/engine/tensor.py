"""Tensor parallelism: makes each rank of a group compute with its part of the weights, as `models.tensor_plan` says.

Modules keep their classes, names and code; their parameters become the local part, and their `forward` gains what
happens at its edges. ZeRO stages and pipeline stages may be built from such a model alike.

Dropout: the ranks of a group must seed alike. They then draw the same masks for whole activations, and each its own
for its heads and features (see `tensor_random`): the distribution of one process, though not its very masks.
"""

from __future__ import annotations

import copy
import inspect
import math
from functools import partial
from typing import Any

import deepspeed.comm as dist
import torch
from torch import nn

from toolkit.engine import device
from toolkit.engine.tensor_edges import Edges, sum_over
from toolkit.models.shards import shard_of
from toolkit.models.tensor_plan import PerHead, TensorPlan
from toolkit.models.vocabulary import VocabularyPart


def apply_tensor_parallel(model: nn.Module, plan: TensorPlan, group: Any) -> Edges:
    """Turn `model` into this rank's part of it, in place; returns what its collectives share.

    `model` is a skeleton on the meta device or holds its whole weights, and is not partitioned by ZeRO yet. `group`
    is the process group of `plan.degree` ranks that share one copy of the weights; all of them must be fed the same
    batches. Who replaces Parameter objects afterwards (loading into a skeleton) calls `mark_parameters` again.
    """
    rank = dist.get_rank(group)
    parameters = dict(model.named_parameters())
    for name, shard in plan.of_rank(rank).items():
        # The object stays, and with it whatever is tied to it.
        parameters[name].data = shard.cut(parameters[name].data).clone(memory_format=torch.contiguous_format)
    edges = Edges(group)
    for name, boundary in plan.boundaries.items():
        edges.wrap(model.get_submodule(name), boundary)
    part = VocabularyPart(group, rank, plan.vocabulary)
    if plan.head is not None:
        # Where the loss is computed inside the head, it needs to know (models/heads.py, token_loss).
        model.get_submodule(plan.head).vocabulary = part  # type: ignore[assignment]
    if plan.embedding is not None:
        edges.wrap_embedding(model.get_submodule(plan.embedding), part)
    for name, counts in plan.counts.items():
        _set_counts(model.get_submodule(name), counts)
    for name, per_head in plan.per_head.items():
        _cut_arguments(model.get_submodule(name), per_head, plan.degree, rank)
    mark_parameters(model, plan, group)
    return edges


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
        # A parameter of a skeleton is replaced when it is loaded, and a hook would go with it.
        is_new = not parameter.is_meta and not hasattr(parameter, "sums_gradient")
        if name in plan.partial and parameter.requires_grad and is_new:
            # A hook on the leaf runs before the gradient is accumulated, hence before any of ZeRO's hooks.
            parameter.register_hook(partial(sum_over, group=group))  # type: ignore[no-untyped-call]
            parameter.sums_gradient = True  # type: ignore[attr-defined]


def gradient_norm(model: nn.Module, group: Any | None) -> float:
    """L2 norm of the whole model's gradient, the same on every rank of the tensor group; None: there is no such group.

    What DeepSpeed computes with an mpu, for the one engine that clips without telling the norm (stage 0 in fp32). In
    fp64: on a CPU torch sums squares in fp32, where small ones are lost beside large ones; of an embedding of 28
    million numbers the norm then came out 0.2 % too small.
    """
    is_first = group is None or dist.get_rank(group) == 0
    counted = (parameter for parameter in model.parameters() if is_first or shard_of(parameter) is not None)
    gradients = [parameter.grad for parameter in counted if parameter.grad is not None]
    square = torch.zeros((), dtype=torch.float64, device=device.current())
    if gradients:
        # One by one, since a kernel for all of them would copy all of them to fp64; read once. Into one tensor, since on
        # a CPU norms of their own would lie between the freed copies and keep the heap from giving any of them back.
        norms = torch.empty(len(gradients), dtype=torch.float64, device=square.device)
        for gradient, norm in zip(gradients, norms, strict=True):
            torch.linalg.vector_norm(gradient, dtype=torch.float64, out=norm)
        square += norms.square().sum()
    if group is not None:
        dist.all_reduce(square, group=group)
    return math.sqrt(float(square))


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
