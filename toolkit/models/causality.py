"""Whether a causal model is causal as it stands, asked of the model itself: what comes later moves nothing before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from toolkit.errors import ModelError
from toolkit.models.agreement import excess, hidden_states, takes_positions, vocabulary_size
from toolkit.models.quiet import quiet

BEFORE, AFTER = 6, 6
"""Tokens that stay and tokens that change."""

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Of the activations' norm. What is computed for earlier tokens is the same in both runs: hardly rounding is left."""

TOLERANCE_16_BIT = 1e-3

TOLERANCE_OF_EXPERTS = 5e-2
"""In 16 bits: tokens are multiplied in groups, of other sizes when other tokens go to an expert."""

SWITCHES = {"is_decoder": True, "is_causal": True, "causal": True, "use_bidirectional_attention": False}
"""Fields by which configurations say it, and what makes attention causal."""


def foresight(model: nn.Module) -> float:
    """How far hidden states move when all later tokens change, relative to their size; 0 in a causal model.

    Of an encoder-decoder: how far its logits move, when all later tokens of the target change.
    """
    device, vocabulary = next(model.parameters()).device, vocabulary_size(model)
    positions = torch.arange(BEFORE + AFTER, device=device).unsqueeze(0)
    first = positions % vocabulary
    other = torch.where(positions < BEFORE, first, (positions * 3 + 7) % vocabulary)
    if getattr(model.config, "is_encoder_decoder", False):
        one, two = (_decoded(model, first, tokens)[:, :BEFORE] for tokens in (first, other))
    else:
        one, two = (hidden_states(model, tokens, positions)[:, :BEFORE] for tokens in (first, other))
    return float((one - two).norm() / one.norm().clamp(min=1e-30))


def _decoded(model: nn.Module, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of an encoder-decoder, in fp32."""
    logits: torch.Tensor = model(input_ids=source, decoder_input_ids=target, use_cache=False).logits
    return logits.float()


def shift(model: nn.Module) -> float:
    """How far hidden states move when positions are those of our batches (from 0) and not the model's own.

    In multiples of what rounding explains; 0 for a model that takes none.
    """
    if not takes_positions(model):
        return 0.0
    device = next(model.parameters()).device
    positions = torch.arange(BEFORE + AFTER, device=device).unsqueeze(0)
    tokens = (positions + 3) % vocabulary_size(model)
    given, own = hidden_states(model, tokens, positions), hidden_states(model, tokens, None)
    return excess(model, given, own)


def check_positions(moved: float, model: nn.Module, cure: str = "choose a decoder") -> None:
    """Raise ModelError when `shift` is more than rounding; `cure` is what to do about it."""
    if not moved < 1.0:
        raise ModelError(
            f"{type(model).__name__} does not count positions from 0",
            expected="a model whose first token has position 0, as in each document of a batch: the export would compute something else",
            do=cure,
        )


def check_causal(moved: float, config: PretrainedConfig, model: nn.Module, task: str = "causal_lm") -> None:
    """Raise ModelError when `foresight` is more than rounding."""
    has_experts = isinstance(model, PreTrainedModel) and model._can_set_experts_implementation()
    coarse = TOLERANCE_OF_EXPERTS if has_experts else TOLERANCE_16_BIT
    if moved < TOLERANCE.get(next(model.parameters()).dtype, coarse):
        return
    cures = _cures(config)
    raise ModelError(
        f"{type(model).__name__} lets a token see those after it (hidden states move by {moved:.1%}): it would learn to copy",
        expected=f"a causal model, since task.name={task!r} predicts each token from those before it",
        do=f"{cures[0]}, or choose a decoder" if cures else "choose a decoder",
    )


def _cures(config: PretrainedConfig) -> list[str]:
    text = config.get_text_config()
    return [
        f"set model.config {name} to {wanted}"
        for name, wanted in SWITCHES.items()
        if getattr(text, name, None) not in (wanted, None)
    ]


def rehearse_causal(kind: Any, config: PretrainedConfig) -> None:
    """`check_causal` before any weight is read: asks one layer of the architecture, with random weights.

    Only where the configuration has a switch in the wrong place; whether that matters is each architecture's own.
    """
    if not _cures(config):
        return
    short = copy.deepcopy(config)
    short.num_hidden_layers, short.vocab_size, short.pad_token_id = 1, 64, 0
    try:
        with quiet(), torch.no_grad():
            model: nn.Module = kind.from_config(short, dtype=torch.float32).eval()
            moved = foresight(model)
    except Exception:
        # An architecture that cannot be cut like this is asked when its weights are loaded.
        return
    check_causal(moved, config, model)
