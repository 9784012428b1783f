"""Attention one document at a time: exact for packed sequences, without a mask of tokens x tokens.

transformers' "sdpa" keeps documents apart by a mask over the whole sequence, of which most is False and all is
computed. Cutting at the documents' boundaries instead computes only what is attended to, and each piece is plain
causal attention, torch's fastest kind. On a GPU flash_attention_2 does the same in one kernel.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

DOCUMENTS = "toolkit_documents"
"""Name of this implementation among transformers' attention functions."""


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of query [B, H, T, D], key and value [B, K, T, D]; returns [B, T, H, D].

    A document ends where position_ids [B, T] stop rising by one. Without them, and with a cache, it is transformers'
    own "sdpa".
    """
    length = query.shape[2]
    if attention_mask is not None or position_ids is None or key.shape[2] != length or length == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    if position_ids.shape[0] != query.shape[0]:
        position_ids = position_ids.expand(query.shape[0], -1)
    rows = []
    for row, sizes in enumerate(document_lengths(position_ids)):
        pieces = [torch.split(tensor[row : row + 1], sizes, dim=2) for tensor in (query, key, value)]
        outputs = [
            sdpa_attention_forward(module, *piece, _window_mask(piece[0], sliding_window), **options)[0]
            for piece in zip(*pieces, strict=True)
        ]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows, dim=0), None


def document_lengths(position_ids: Tensor) -> list[list[int]]:
    """Tokens of each document, for each row of position_ids [B, T]."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    end = position_ids.shape[1]
    found = []
    for row in starts:
        bounds = [*row.nonzero().flatten().tolist(), end]
        found.append([stop - start for start, stop in itertools.pairwise(bounds)])
    return found


def _window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """[1, 1, t, t], True where a token may look: itself and the window - 1 before it. None: causal is enough."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    behind = places[:, None] - places[None, :]
    return ((behind >= 0) & (behind < window))[None, None]


AttentionInterface.register(DOCUMENTS, document_attention)
