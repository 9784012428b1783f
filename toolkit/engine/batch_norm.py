"""Batch norm whose running statistics depend on the data and the micro-batch alone, never on how many ranks share a step.

PyTorch updates them in every forward pass of every rank: another number of ranks or of accumulated micro-batches gives
other statistics, and ranks that disagree. Here each micro-batch's own statistics are summed, and once per optimizer step
the running ones move towards their mean over the global batch. With one micro-batch per step that is what PyTorch does. A
micro-batch has the same examples whatever the world size, so the curve is the same, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolkit.engine.process import num_ranks
from toolkit.errors import ModelError

Mode = Literal["micro_batch", "synchronised", "frozen"]
"""What normalises in training: the statistics of the micro-batch; those of the micro-batches that all ranks compute at the
same time; the running ones, which then stay as they are."""

SAID: dict[str, str] = {
    "micro_batch": "each micro-batch is normalised by itself, and the running statistics are means over the global batch",
    "synchronised": "the micro-batches of all ranks are normalised together, so that the curve depends on their number, and the "
    "running statistics are means over the global batch",
    "frozen": "normalised by the running statistics of the checkpoint, which stay as they are",
}


class Statistics:
    """The running statistics of all batch norms of one model."""

    def __init__(self, model: nn.Module, mode: Mode) -> None:
        self.mode = mode
        self._norms = dict(_norms(model))
        self._sums: dict[str, Tensor] = {}
        """Name of a norm -> mean, variance and number of the micro-batches of the step so far, added up; [2 C + 1] fp64."""
        for name, norm in self._norms.items():
            norm.forward = partial(self._forward, name, norm)  # type: ignore[method-assign]
        # DeepSpeed rounds buffers to the format of the weights, in which slow averages stand still.
        self._exact = {name: value.detach().clone() for name, value in self.tensors() if value.is_floating_point()}

    def describe(self) -> str:
        """One line for the user."""
        return f"batch norm: {SAID[self.mode]}"

    def keep_exact(self) -> None:
        """Put the statistics back in the format they had, on the device where DeepSpeed has moved them."""
        for name, value in list(self.tensors()):
            if name in self._exact:
                path, _, leaf = name.rpartition(".")
                self._norms[path]._buffers[leaf] = self._exact[name].to(value.device)
        self._exact = {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The running statistics, which are saved with the weights, by name."""
        for name, norm in self._norms.items():
            for leaf, value in norm.named_buffers(recurse=False):
                yield f"{name}.{leaf}", value

    def settle(self, group: dist.ProcessGroup | None, *, is_applied: bool) -> None:
        """Move the running statistics towards the mean of what this step has seen on all ranks of `group`. Collective.

        `is_applied`: the optimizer step was; what a step that overflowed has seen is dropped.
        """
        sums, self._sums = self._sums, {}
        if self.mode == "frozen":
            return
        # Of every norm, in one order: which of them a rank has called, and when, may depend on its data.
        parts = [sums[name] if name in sums else self._nothing(norm) for name, norm in self._norms.items()]
        flat = torch.cat(parts)
        if num_ranks(group) > 1:
            dist.all_reduce(flat, group=group)
        if not is_applied:
            return
        for norm, total in zip(self._norms.values(), torch.split(flat, [len(part) for part in parts]), strict=True):
            if float(total[-1]):
                self._move(norm, *(total[:-1] / total[-1]).chunk(2))

    def _nothing(self, norm: _BatchNorm) -> Tensor:
        assert norm.running_mean is not None
        return torch.zeros(2 * norm.num_features + 1, dtype=torch.float64, device=norm.running_mean.device)

    def _move(self, norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        # Without a momentum PyTorch takes the plain mean of all steps.
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        for running, seen in ((norm.running_mean, mean), (norm.running_var, variance)):
            running.copy_((1.0 - share) * running.double() + share * seen)

    def _forward(self, name: str, norm: _BatchNorm, values: Tensor) -> Tensor:
        norm._check_input_dim(values)  # type: ignore[no-untyped-call]
        # In fp32 beside 16-bit values, as the kernels want them beside statistics in fp32.
        weight, bias = (None if part is None else part.float() for part in (norm.weight, norm.bias))
        if not norm.training or self.mode == "frozen":
            return nn.functional.batch_norm(
                values, norm.running_mean, norm.running_var, weight, bias, training=False, eps=norm.eps
            )
        if values.numel() == values.shape[1]:
            raise ModelError(
                f"batch norm of {name}: a micro-batch gives it one value per channel",
                expected="several: one has no variance",
                do="set batch.micro_size=2 or more, or model.batch_norm='frozen'",
            )
        assert norm.running_mean is not None
        mean, variance = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_mean)
        if self.mode == "synchronised" and num_ranks() > 1:
            found = _over_ranks(values, mean, variance, weight, bias, norm.eps)
        else:
            # With a momentum of 1 the running statistics become those of this batch.
            found = nn.functional.batch_norm(
                values, mean, variance, weight, bias, training=True, momentum=1.0, eps=norm.eps
            )
        if torch.is_grad_enabled():
            seen = torch.cat([mean, variance, torch.ones_like(mean[:1])]).double()
            self._sums[name] = seen + self._sums.get(name, 0.0)
        return found


def batch_norm_statistics(model: nn.Module, mode: Mode) -> Statistics | None:
    """Let the batch norms of `model` compute as `mode` says; None where it has none."""
    return Statistics(model, mode) if any(True for _ in _norms(model)) else None


def moving_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that training moves."""
    return {f"{name}.{leaf}" for name, norm in _norms(model) for leaf, _ in norm.named_buffers(recurse=False)}


def _norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


class _Sum(torch.autograd.Function):
    """A sum over all ranks; so is its gradient, since the loss is that of all ranks."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]  # torch has no types for it
    return total


def _over_ranks(
    values: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`values` [N, C, ...] normalised by the statistics of all ranks' values, which `mean` and `variance` [C] receive.

    In two passes, mean first, so that a mean far from 0 costs no accuracy. torch's own SyncBatchNorm is for GPUs alone.
    """
    others = [dim for dim in range(values.dim()) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(values.dim())]
    exact = values.float()
    count = _summed(exact.new_tensor([values.numel() // values.shape[1]]))
    centre = _summed(exact.sum(others)) / count
    spread = _summed((exact - centre.view(shape)).square().sum(others)) / count
    mean.copy_(centre.detach())
    variance.copy_(spread.detach() * count / (count - 1.0))
    found = (exact - centre.view(shape)) * torch.rsqrt(spread + eps).view(shape)
    if weight is not None:
        found = found * weight.view(shape)
    if bias is not None:
        found = found + bias.view(shape)
    return found.to(values.dtype)
