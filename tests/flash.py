"""A flash kernel for the CPU: transformers' own dispatch runs, and each call gets the documents it was told."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import modeling_flash_attention_utils as flash


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    dropout_p: float = 0.0,
) -> Tensor:
    """flash_attn_varlen_func: query [tokens, H, D], key and value [tokens, K, D] of documents laid end to end."""
    assert cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max()) and int(cu_seqlens_q[-1]) == len(query)
    pieces = []
    for start, stop in itertools.pairwise(cu_seqlens_q.tolist()):
        parts = (tensor[start:stop].transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        pieces.append(_attend(*parts, causal, softmax_scale, window_size)[0].transpose(0, 1))
    return torch.cat(pieces)


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    dropout_p: float = 0.0,
) -> Tensor:
    """flash_attn_func: query [B, T, H, D]; every row is one document."""
    parts = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return _attend(*parts, causal, softmax_scale, window_size).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None, window: tuple[int, int]
) -> Tensor:
    places = torch.arange(query.shape[2])
    behind = places[:, None] - places[None, :]
    allowed = (behind >= 0) if causal else torch.ones_like(behind, dtype=torch.bool)
    if window[0] >= 0:
        allowed &= behind <= window[0]
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=scale, enable_gqa=True
    )


def install(monkeypatch: Any) -> None:
    """Let transformers find these two where it would load the flash_attn package."""
    process = flash._lazy_define_process_function(varlen)
    monkeypatch.setattr(
        flash,
        "lazy_import_flash_attention",
        lambda *_: ((plain, varlen, None, flash._pad_input, flash._unpad_input), (process, dict)),
    )


def use(model: nn.Module) -> None:
    """Switch `model` to "flash_attention_2" without asking for the package."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "flash_attention_2"
