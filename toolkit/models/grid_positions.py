"""Positions of tokens in images, for models that rotate by three of them: time, row and column (Qwen2-VL and its kin)."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, PretrainedConfig

from toolkit.models.attention_choice import model_class

AXES = 3
RULE = "get_rope_index"
"""transformers' method that makes them."""


def takes_grid(model: nn.Module) -> bool:
    """Whether `model` is one of those."""
    return hasattr(model.base_model, RULE)


def as_taken(model: nn.Module, positions: torch.Tensor) -> torch.Tensor:
    """Positions [B, T] of text in the form that `model` takes: its own, or as [4, B, T].

    The first of the four tells documents apart; the other three are those of the rotation, alike in text.
    """
    return positions.expand(1 + AXES, *positions.shape) if takes_grid(model) and positions.dim() == 2 else positions


class GridPositions:
    """The rule of the class that `config` describes, without a model."""

    def __init__(self, base: type[nn.Module], config: PretrainedConfig) -> None:
        self._base, self.config = base, config

    @classmethod
    def of(cls, config: PretrainedConfig) -> GridPositions | None:
        """None for a model whose positions are a line."""
        base = model_class(AutoModel, config)
        return cls(base, config) if hasattr(base, RULE) else None

    def __getattr__(self, name: str) -> Any:
        return types.MethodType(getattr(self._base, name), self)

    def positions(
        self, ids: NDArray[Any], is_image: NDArray[Any], arrays: dict[str, NDArray[Any]]
    ) -> NDArray[np.int64]:
        """[3, T] of one text, in which `is_image` says which tokens are an image's; `arrays` are those of its images."""
        if not is_image.any():
            return np.broadcast_to(np.arange(len(ids)), (AXES, len(ids))).astype(np.int64)
        named = {name: torch.from_numpy(value) for name, value in arrays.items() if name.endswith("grid_thw")}
        found, _ = getattr(self, RULE)(
            torch.from_numpy(ids.astype(np.int64))[None],
            mm_token_type_ids=torch.from_numpy(is_image.astype(np.int64))[None],
            **named,
        )
        grid: NDArray[np.int64] = found[:, 0].numpy()
        return grid
