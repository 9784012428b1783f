"""liger-kernel's fused kernels on tensors without values: they keep what the kernels keep, and move what they move.

Triton computes on a device only. While a trace goes on, liger's own modules, put into the model as in a run
(`toolkit.models.kernels`), find these functions in the place of its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


class PlannedNorm(torch.autograd.Function):
    """RMSNorm of [..., D] (ops/rms_norm.py): of its input and one fp32 number per row; its gradient takes the place of
    the output's, where liger lets it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
        """`options` are eps, the offset, the way of casting, whether gradients may share memory, and more."""
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        ctx.in_place, ctx.options = bool(options[3]), len(options)
        return torch.mul(x, x if weight is None else weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        grad = torch.add(grad, x, out=grad) if ctx.in_place and grad.is_contiguous() else torch.add(grad, x)
        return (grad, None if weight is None else torch.empty_like(weight), *[None] * ctx.options)


class PlannedGate(torch.autograd.Function):
    """act(a) * b (ops/swiglu.py, ops/geglu.py): of both inputs, whose gradients take their places."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, *others: Any) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.others = len(others)
        return torch.mul(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = (tensor.detach() for tensor in ctx.saved_tensors)
        return (torch.add(a, grad, out=a), torch.add(b, grad, out=b), *[None] * ctx.others)


class PlannedRotation(torch.autograd.Function):
    """Rotary embedding of query and key (ops/rope.py), in place, forward and backward; of the angles alone."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return query.view_as(query), key.view_as(key)

    @staticmethod
    def backward(_: Any, query: Tensor, key: Tensor) -> Any:
        return query, key, None, None


def _rotated(_: str, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *__: Any, **___: Any) -> Any:
    return PlannedRotation.apply(query, key, cos, sin)  # type: ignore[no-untyped-call]


@contextmanager
def planned_kernels() -> Iterator[None]:
    """Let liger's modules compute on tensors without values. liger-kernel must be installed."""
    places = [
        ("rms_norm", "LigerRMSNormFunction", PlannedNorm),
        ("swiglu", "LigerSiLUMulFunction", PlannedGate),
        ("geglu", "LigerGELUMulFunction", PlannedGate),
        ("rope", "dispatch", _rotated),
    ]
    modules = [(import_module(f"liger_kernel.transformers.{name}"), attribute, put) for name, attribute, put in places]
    before = [(module, attribute, getattr(module, attribute)) for module, attribute, _ in modules]
    try:
        for module, attribute, put in modules:
            setattr(module, attribute, put)
        yield
    finally:
        for module, attribute, kernel in before:
            setattr(module, attribute, kernel)
