"""Whether attention really stays inside each document of a packed sequence, asked of the model itself."""

from __future__ import annotations

import torch
from torch import nn

from toolkit.errors import ModelError
from toolkit.models.agreement import hidden_states, takes_positions, vocabulary_size
from toolkit.models.attention import DOCUMENTS

DOCUMENT = 6
"""Tokens per document of the probe."""

TOLERANCE = 1e-2
"""Of the largest activation. A leak moves it by its own size; rounding in bf16 stays far below."""


def leak(model: nn.Module) -> float:
    """How far the second document's hidden states move when the first document changes, relative to their size.

    1.0 for a model that takes no positions. Two documents of the same length in one sequence, told apart by positions that restart, as in training.
    """
    if not takes_positions(model):
        return 1.0
    return _difference(*(_second_document(model, shift) for shift in (7, 23)))


def use_document_attention(model: nn.Module) -> bool:
    """Switch a model that packs from "sdpa" to attention document by document; whether it was done.

    Left alone is a model with layers that are neither causal nor sliding, or whose numbers would change.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        return False
    before = _second_document(model, 7)
    model.set_attn_implementation(DOCUMENTS)  # type: ignore[operator]
    if _difference(before, _second_document(model, 7)) < TOLERANCE:
        return True
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    return False


def _second_document(model: nn.Module, shift: int) -> torch.Tensor:
    """Hidden states [t, D] of the second of two documents; `shift` chooses the first one's tokens."""
    device = next(model.parameters()).device
    vocabulary = vocabulary_size(model)
    positions = torch.arange(DOCUMENT, device=device).repeat(1, 2)
    second = torch.arange(1, DOCUMENT + 1, device=device) % vocabulary
    first = (torch.arange(DOCUMENT, device=device) * 3 + shift) % vocabulary
    tokens = torch.cat([first, second]).unsqueeze(0)
    return hidden_states(model, tokens, positions)[0, DOCUMENT:]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))


def check_isolation(moved: float, architecture: str) -> None:
    """Raise ModelError when `leak` is more than rounding."""
    if not moved < TOLERANCE:
        raise ModelError(
            f"data.packing=True: {architecture} lets a document see the one before it (activations move by {moved:.0%})",
            expected="an architecture whose attention respects restarting position_ids",
            do="set data.packing=False for this model",
        )
