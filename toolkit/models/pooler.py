"""Poolers: layers behind an encoder that only some tasks read."""

from __future__ import annotations

from torch import nn


def freeze_pooler(model: nn.Module) -> None:
    """Leave what no loss of this task reaches as it is.

    Without a gradient, weight decay would still move it under some strategies and not under others.
    """
    for name, parameter in model.named_parameters():
        if "pooler" in name.split("."):
            parameter.requires_grad_(False)
