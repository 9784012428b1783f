"""Variable-length kernels for the CPU, with the arguments of torch's own of two versions, and attention through them."""

from __future__ import annotations

import inspect
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolkit.models.attention import register
from toolkit.models.varlen import VarlenKernel


class Call(NamedTuple):
    """What a kernel was called with, beside tensors of tokens."""

    bounds: Tensor
    causal: bool
    window: tuple[int, int]


CALLS: list[Call] = []
"""Of both kernels, the newest last."""


def newest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """varlen_attn of torch 2.11 and later: query [N, H, D], key and value [N, K, D]; returns [N, H, D]."""
    assert enable_gqa or query.shape[1] == key.shape[1], "as torch refuses it"
    assert cu_seq_k is cu_seq_q
    return _attend(query, key, value, cu_seq_q, max_q, max_k, window_size, scale)


def first(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> Tensor:
    """varlen_attn of torch 2.10."""
    assert query.shape[1] == key.shape[1], "not documented to group heads"
    assert cu_seq_k is cu_seq_q
    return _attend(query, key, value, cu_seq_q, max_q, max_k, (-1, 0 if is_causal else -1), None)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    max_q: int,
    max_k: int,
    window: tuple[int, int],
    scale: float | None,
) -> Tensor:
    """One document after the other, under a mask written out; refuses what the kernel on a device would misread."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] and query.shape[-1] % 8 == 0
    assert bounds.dtype == torch.int32 and int(bounds[0]) == 0 and int(bounds[-1]) == len(query) == len(key)
    assert max_q == max_k == int(bounds.diff().max()) and int(bounds.diff().min()) > 0
    CALLS.append(Call(bounds, window[1] == 0, window))
    pieces = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        places = torch.arange(stop - start)
        ahead = places[None, :] - places[:, None]
        allowed = torch.ones_like(ahead, dtype=torch.bool)
        if window[0] >= 0:
            allowed &= ahead >= -window[0]
        if window[1] >= 0:
            allowed &= ahead <= window[1]
        parts = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
        found = nn.functional.scaled_dot_product_attention(*parts, attn_mask=allowed, scale=scale, enable_gqa=True)
        pieces.append(found[0].transpose(0, 1))
    return torch.cat(pieces)


DTYPES = (torch.float32, torch.float64, torch.bfloat16)
KERNELS = {
    "newest": VarlenKernel(newest, "cpu", DTYPES),
    "first": VarlenKernel(first, "cpu", DTYPES),
}

NEWEST = "tests_varlen_newest"
"""Name among transformers' attention functions of our attention with the kernel `newest`."""

register(NEWEST, KERNELS["newest"])


def real_signature() -> inspect.Signature | None:
    """Of the installed torch's kernel; None before torch 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return inspect.signature(varlen_attn)
