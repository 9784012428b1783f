"""Where documents end in packed sequences, told to attention; and attention one document at a time.

transformers' "sdpa" and "eager" keep documents apart by a mask over the whole sequence, made from positions that
restart. Its flash implementations have no mask: told the bounds of the documents they compute each of them alone
(varlen), also in several rows at once; left to find the bounds in the positions they look at one row only. So the
bounds are counted once per micro-batch, on the CPU, travel in the batch as DOCUMENT_LENGTHS, and are handed to the
model with its other inputs. `document_attention` uses the same bounds on any device: of "sdpa"'s mask most is False and
all is computed; cut at the bounds only what is attended to is computed, each piece by torch's fastest kind.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

DOCUMENTS = "toolkit_documents"
"""Name of this implementation among transformers' attention functions."""

DOCUMENT_LENGTHS = "document_lengths"
"""Name in a batch: tokens of each document, [B, N], rows filled up with zeros. Stays on the CPU, where it is read."""

MASKED = ("sdpa", "eager")
"""Implementations that keep documents apart by a mask, for which restarting positions are enough."""


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: list[list[int]] | None = None,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of query [B, H, T, D], key and value [B, K, T, D]; returns [B, T, H, D].

    `document_lengths` has one list per row; without it a document ends where position_ids [B, T] stop rising by one.
    Without either, and with a cache, it is transformers' own "sdpa".
    """
    length = query.shape[2]
    is_told = document_lengths is not None or position_ids is not None
    if attention_mask is not None or not is_told or key.shape[2] != length or length == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    if document_lengths is None:
        assert position_ids is not None, "one of the two is given"
        document_lengths = lengths_by_positions(position_ids.expand(query.shape[0], -1))
    rows = []
    for row, sizes in enumerate(document_lengths):
        pieces = [torch.split(tensor[row : row + 1], sizes, dim=2) for tensor in (query, key, value)]
        outputs = [
            sdpa_attention_forward(module, *piece, _window_mask(piece[0], sliding_window), **options)[0]
            for piece in zip(*pieces, strict=True)
        ]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows, dim=0), None


def lengths_by_positions(position_ids: Tensor) -> list[list[int]]:
    """Tokens of each document, for each row of position_ids [B, T]. Waits for the device."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    end = position_ids.shape[1]
    found = []
    for row in starts:
        bounds = [*row.nonzero().flatten().tolist(), end]
        found.append([stop - start for start, stop in itertools.pairwise(bounds)])
    return found


def lengths_tensor(rows: list[list[int]]) -> Tensor:
    """What a batch holds under DOCUMENT_LENGTHS: int64 [B, N]."""
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64)


def tell_documents(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """`inputs` of `model` with DOCUMENT_LENGTHS in the form in which its attention takes them.

    A model that takes no further keyword arguments is told nothing: whether positions are enough for it is for
    `toolkit.models.isolation` to find out.
    """
    told: dict[str, Any] = dict(inputs)
    lengths = told.pop(DOCUMENT_LENGTHS, None)
    implementation: Any = model.config._attn_implementation  # type: ignore[union-attr]
    if lengths is None or implementation in MASKED or not _takes_options(model):
        return told
    rows = [[length for length in row if length] for row in lengths.tolist()]
    if "flash" not in implementation:
        return told | {DOCUMENT_LENGTHS: rows}
    flat = list(itertools.chain.from_iterable(rows))
    device = next(iter(told.values())).device
    # transformers' names (FlashAttentionKwargs): bounds over all rows laid end to end.
    bounds = torch.tensor([0, *itertools.accumulate(flat)], dtype=torch.int32).to(device, non_blocking=True)
    told |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return told | {"max_length_q": max(flat), "max_length_k": max(flat)}


def _takes_options(model: nn.Module) -> bool:
    parameters = inspect.signature(model.base_model.forward).parameters.values()  # type: ignore[union-attr]
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """[1, 1, t, t], True where a token may look: itself and the window - 1 before it. None: causal is enough."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    behind = places[:, None] - places[None, :]
    return ((behind >= 0) & (behind < window))[None, None]


AttentionInterface.register(DOCUMENTS, document_attention)
