"""The last layer of a classifier: which weights it has, and how they begin anew on a pretrained body."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from toolkit.models.quiet import quiet


def parameter_shapes(kind: Any, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of the model that `kind` makes of `config`; nothing is allocated."""
    with torch.device("meta"), quiet():
        network = kind.from_config(copy.deepcopy(config))
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def output_layer(kind: Any, config: PretrainedConfig) -> list[str]:
    """Names of the parameters whose shape follows from the number of classes; nothing is allocated."""
    wider = copy.deepcopy(config)
    wider.num_labels = config.num_labels + 1
    shapes, others = parameter_shapes(kind, config), parameter_shapes(kind, wider)
    return [name for name, shape in shapes.items() if others[name] != shape]


def renew(network: nn.Module, names: list[str]) -> None:
    """Give the parameters `names` fresh values, drawn as the architecture draws them."""
    owners = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner: Any = network.get_submodule(path)
        # A new object: transformers marks those it has loaded, and leaves them as they are.
        setattr(owner, leaf, nn.Parameter(torch.zeros_like(getattr(owner, leaf))))
        owners[path] = owner
    for owner in owners.values():
        network._init_weights(owner)  # type: ignore[operator]
