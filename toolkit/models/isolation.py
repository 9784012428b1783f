"""Whether attention really stays inside each document of a packed sequence, asked of the model itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from toolkit.errors import ModelError
from toolkit.models.agreement import excess, hidden_states, takes_positions, vocabulary_size

ROWS = ((6, 6), (3, 5, 4))
"""Tokens per document of the probe: rows of one length, with bounds at different places."""

TOLERANCE = 1e-2
"""Of the largest activation. A leak moves it by its own size; rounding in bf16 stays far below."""


def leak(model: nn.Module) -> float | None:
    """How far hidden states move that should not, relative to their size; None for a model that takes no positions.

    Two rows of documents in one batch, told apart as in training: the first document of each row changes, and the
    others must not move; and a row must come out of the batch as it does alone, but for rounding.
    """
    if not takes_positions(model):
        return None
    once, again = (probe(model, shift) for shift in (7, 23))
    moved = max(
        difference(one[first:], other[first:]) for one, other, (first, *_) in zip(once, again, ROWS, strict=True)
    )
    alone = probe(model, 7, ROWS[1:])
    # Another batch size may round otherwise, which the comparison above leaves out of account.
    return moved if excess(model, once[1:], alone) < 1.0 else max(moved, difference(alone, once[1:]))


def probe(model: nn.Module, shift: int, rows: Sequence[tuple[int, ...]] = ROWS) -> torch.Tensor:
    """Hidden states [B, T, D] of `rows` of documents; `shift` chooses the tokens of each row's first one."""
    tokens = probe_tokens(model, shift, rows)
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    return hidden_states(model, tokens, positions.to(tokens.device), [list(row) for row in rows])


def probe_tokens(model: nn.Module, shift: int, rows: Sequence[tuple[int, ...]] = ROWS) -> torch.Tensor:
    """Tokens [B, T] of `rows` of documents; `shift` chooses those of each row's first one."""
    tokens = torch.arange(1, sum(rows[0]) + 1).repeat(len(rows), 1)
    for row, (first, *_) in zip(tokens, rows, strict=True):
        row[:first] = torch.arange(first) * 3 + shift
    return (tokens % vocabulary_size(model)).to(next(model.parameters()).device)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest, relative to the largest value of `one`."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))


def check_isolation(moved: float | None, architecture: str, attention: str = "sdpa") -> None:
    """Raise ModelError when `leak` is more than rounding, or could not be measured; `attention` is one that may help."""
    if moved is None:
        raise ModelError(
            f"data.packing=True: {architecture} takes no positions, and so cannot be told where a packed document begins",
            expected="an architecture whose forward takes position_ids",
            do="set data.packing=False for this model",
        )
    if not moved < TOLERANCE:
        raise ModelError(
            f"data.packing=True: {architecture} lets a document see another one (activations move by {moved:.0%})",
            expected="an architecture and an attention that keep packed documents apart",
            do=f"set data.packing=False for this model, or model.attention={attention!r} if it is another",
        )
