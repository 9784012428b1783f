"""NEFTune: noise on the input embeddings while fine-tuning (Jain et al. 2023, arXiv 2310.05914)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def add_neftune(model: nn.Module, alpha: float, parts: int = 1) -> None:
    """Add uniform noise in [-m, m], m = alpha / sqrt(T x D), to embeddings [B, T, D] in training mode.

    T counts the tokens of a whole row, as in the authors' code: padding and packed neighbours included, and the other
    ranks' tokens where a row is cut into `parts`. Of an encoder-decoder, what the encoder reads.
    """
    owner: Any = model
    if getattr(model.config, "is_encoder_decoder", False):
        owner = owner.get_encoder()  # what the whole model names may be a table that is only shared, and never called
    embeddings: nn.Module = owner.get_input_embeddings()

    def add_noise(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        magnitude = alpha / math.sqrt(output.shape[-2] * parts * output.shape[-1])
        return output + torch.empty_like(output).uniform_(-magnitude, magnitude)

    embeddings.register_forward_hook(add_noise)
