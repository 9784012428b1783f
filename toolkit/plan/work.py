"""What an operation asks of a device: FLOPs of matrix products and of attention, bytes that every other one moves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

# Registers transformers' operators for products with experts' weights.
import transformers.integrations.moe  # noqa: F401
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

FREE = frozenset(
    (
        aten.empty,
        aten.empty_like,
        aten.empty_strided,
        aten.new_empty,
        aten.new_empty_strided,
        aten._unsafe_view,
        torch.ops.prim.device,
    )
)
"""Operations beside views that move nothing."""

READS_ROWS = frozenset((aten.embedding, aten.gather, aten.index, aten.index_select))
"""Of their first argument they read as much as they return."""

WRITES_ROWS = frozenset((aten.index_add_, aten.index_copy_, aten.index_put_, aten.scatter_, aten.scatter_add_))
"""Of their first argument they change as much as the others hold."""


class Work(NamedTuple):
    """What one micro-batch asks of a device, forward and backward, recomputation included."""

    flops: float = 0.0
    """Of matrix products outside of attention."""
    attention: float = 0.0
    """Of attention, where every token sees its whole sequence, or what is before it of that where it is causal."""
    traffic: float = 0.0
    """Bytes that all other operations read and write."""
    operations: float = 0.0
    local: float = 0.0
    """Of attention in sliding windows, counted like `attention`, as if there were none."""
    near: float = 0.0
    """The same within the windows, of sequences that are one document each."""

    mapped: float = 0.0
    """Bytes of the tensors that are made, of those that glibc asks the system for memory for each time."""
    returned: float = 0.0
    """The same of smaller ones, which it keeps the memory of unless `toolkit.engine.device.return_freed_memory` is on."""

    def products(self, pair_share: float) -> float:
        """FLOPs of all products where `pair_share` of the pairs of tokens of a sequence lie in the same document.

        Documents shorter than a window are seen whole, longer ones as far as it reaches.
        """
        return self.flops + self.attention * pair_share + min(self.local * pair_share, self.near)

    def plus(self, other: Work, factor: float) -> Work:
        """This and `factor` times `other`."""
        return Work(*(mine + factor * more for mine, more in zip(self, other, strict=True)))


NOTHING = Work()


def work_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Work:
    """Of one call of the operator `function`; views ask for nothing."""
    packet = getattr(function, "_overloadpacket", None)
    if packet in FREE or getattr(function, "is_view", False):
        return NOTHING
    counted = _formulas().get(packet)
    if counted is None:
        return Work(traffic=float(_moved(packet, args, kwargs, result)), operations=1.0)
    flops = float(counted(*args, **kwargs, out_val=result))
    if "attention" not in str(packet):
        return Work(flops=flops, operations=1.0)
    return Work(attention=flops / 2 if _is_causal(function, args, kwargs) else flops, operations=1.0)


def _moved(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    if packet in READS_ROWS:
        return _bytes((*args[1:], result, result))
    if packet in WRITES_ROWS:
        return 2 * _bytes(args[1:])
    return _bytes((args, kwargs, result))


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in tree_leaves(values) if isinstance(value, Tensor))


ATTENTION_KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
"""Behind scaled_dot_product_attention. torch's own formulas refuse fewer heads of keys than of queries before 2.12."""


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Of query [B, H, T, D], key [B, h, S, D] and value [B, h, S, E]: scores, and what they weigh."""
    return 2 * query.shape[:3].numel() * key.shape[2] * (query.shape[3] + value.shape[3])


def _attention_back(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """The scores once more, and gradients of scores and value, query and key."""
    return 2 * query.shape[:3].numel() * key.shape[2] * (3 * query.shape[3] + 2 * value.shape[3])


@functools.cache
def _formulas() -> dict[Any, Callable[..., int]]:
    """torch's formulas by operator, and the same for operators that it leaves out."""
    known: dict[Any, Callable[..., int]] = flop_registry
    return {
        **known,
        aten.addmm_: known[aten.addmm],
        aten.baddbmm_: known[aten.baddbmm],
        **{getattr(aten, f"_scaled_dot_product_{kernel}"): _attention for kernel in ATTENTION_KERNELS},
        **{getattr(aten, f"_scaled_dot_product_{kernel}_backward"): _attention_back for kernel in ATTENTION_KERNELS},
        torch.ops.transformers.grouped_mm_fallback: _grouped,
        torch.ops.transformers.grouped_mm_fallback_backward: lambda *args, **_: 2 * _grouped(*args),
    }


def _grouped(tokens: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Of tokens [N, D], each multiplied with one of the experts' matrices [E, D, M]."""
    return 2 * tokens.numel() * weight.shape[2]


@functools.cache
def _place_of_causal(function: Any) -> int | None:
    names = [argument.name for argument in function._schema.arguments]
    return names.index("is_causal") if "is_causal" in names else None


def _is_causal(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    place = _place_of_causal(function)
    if place is None:
        return False
    return bool(args[place] if len(args) > place else kwargs.get("is_causal", False))
