"""Whether attention really stays inside each document of a packed sequence, asked of the model itself."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from toolkit.errors import ModelError

DOCUMENT = 6
"""Tokens per document of the probe."""

TOLERANCE = 1e-2
"""Of the largest activation. A leak moves it by its own size; rounding in bf16 stays far below."""


def leak(model: nn.Module) -> float:
    """How far the second document's hidden states move when the first document changes, relative to their size.

    1.0 for a model that takes no positions. Two documents of the same length in one sequence, told apart by positions that restart, as in training.
    """
    base: nn.Module = model.base_model  # type: ignore[assignment]
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return 1.0
    device = next(model.parameters()).device
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    positions = torch.arange(DOCUMENT, device=device).repeat(1, 2)
    second = torch.arange(1, DOCUMENT + 1, device=device) % vocabulary
    states = []
    for shift in (7, 23):
        first = (torch.arange(DOCUMENT, device=device) * 3 + shift) % vocabulary
        tokens = torch.cat([first, second]).unsqueeze(0)
        hidden = base(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        states.append(hidden[0, DOCUMENT:].float())
    return float((states[0] - states[1]).abs().max() / states[0].abs().max().clamp(min=1e-30))


def check_isolation(moved: float, architecture: str) -> None:
    """Raise ModelError when `leak` is more than rounding."""
    if not moved < TOLERANCE:
        raise ModelError(
            f"data.packing=True: {architecture} lets a document see the one before it (activations move by {moved:.0%})",
            expected="an architecture whose attention respects restarting position_ids",
            do="set data.packing=False for this model",
        )
