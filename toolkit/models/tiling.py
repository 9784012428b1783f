"""Each layer's MLP in tiles of the sequence, so that its wide activations exist for one tile at a time.

An MLP treats every token by itself, and is the widest part of a layer: for a long sequence its intermediate
activations outweigh everything else (Bekman et al. 2025, arXiv 2506.13996, section 3.3). Each tile is a checkpoint of
its own. To autograd all tiles are one graph, so a weight's gradient is summed over them before anyone is told of it:
ZeRO sees each gradient once, as without tiles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.errors import ModelError
from toolkit.models.agreement import Alternative

MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
"""What transformers' layers call the part that works token by token."""


class Tiles(Alternative):
    """The tiled MLPs of one model."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def wrap(self, mlp: nn.Module) -> None:
        """Make `mlp.forward` compute tile after tile.

        Always as many calls as there are tiles, the last ones empty if need be: under ZeRO-3 each call gathers
        weights, on all ranks or on none.
        """
        plain = mlp.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return plain(*args, **kwargs)
            hidden = next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value))
            axis = 1 if hidden.dim() > 2 else 0
            length = hidden.shape[axis]
            columns = [self._cut(value, axis, length) for value in args]
            named = {key: self._cut(value, axis, length) for key, value in kwargs.items()}
            outputs = []
            for index in range(self.number):
                tile = [_contiguous(column[index]) for column in columns]
                options = {key: _contiguous(column[index]) for key, column in named.items()}
                outputs.append(checkpoint(plain, *tile, use_reentrant=False, **options))
            if not all(torch.is_tensor(output) for output in outputs):
                raise _not_tileable(type(mlp).__name__, f"returns {type(outputs[0]).__name__}, not one tensor")
            return torch.cat(outputs, dim=axis)

        mlp.forward = forward

    def _cut(self, value: Any, axis: int, length: int) -> Any:
        """One entry per tile: the tokens' parts of a tensor that has them along `axis`, anything else repeated."""
        if not torch.is_tensor(value) or value.dim() <= axis or value.shape[axis] != length:
            return [value] * self.number
        step = -(-length // self.number)
        sizes = [max(0, min(step, length - index * step)) for index in range(self.number)]
        return torch.split(value, sizes, dim=axis)

    def excess(self, model: nn.Module) -> float:
        """How far tiles move the hidden states of a short text: see `toolkit.models.agreement.excess`."""
        return self._excess(model, 3 * self.number + 1)


def tile_mlps(model: nn.Module, number: int) -> Tiles:
    """Compute the MLP of every layer of `model` in `number` tiles. Raises ModelError when it has no such part."""
    tiles = Tiles(number)
    found = [
        child
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for name, child in layer.named_children()
        if name in MLP_NAMES
    ]
    if not found:
        raise _not_tileable(type(model).__name__, f"has no layer with a part called {' or '.join(MLP_NAMES)}")
    for mlp in found:
        tiles.wrap(mlp)
    return tiles


def _contiguous(value: Any) -> Any:
    """`value` as an MLP would get it: some look at it with `view`."""
    return value.contiguous() if torch.is_tensor(value) else value


def check_tiles(excess: float, architecture: str) -> None:
    """Raise ModelError when tiles change what the model computes."""
    if not excess < 1.0:
        raise _not_tileable(architecture, "has layers whose MLP mixes tokens: tiles change its hidden states")


def _not_tileable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"model.mlp_tiles: {name} {reason}",
        expected="layers with an MLP of their own that treats each token by itself",
        do="set model.mlp_tiles=1; model.activation_checkpointing=True saves activation memory too",
    )
