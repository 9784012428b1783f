"""The last layers of a classifier: which weights follow from its classes, and which a checkpoint may lack."""

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


def is_of_a_head(model: Any, name: str) -> bool:
    """Whether a weight belongs to a task: it lies outside the base model, or is the pooler, which only some tasks train."""
    if "pooler" in name:
        return True
    return model.base_model is not model and not name.startswith(f"{model.base_model_prefix}.")


def embedding_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters in embeddings and output layers, which Muon leaves to Adam.

    It is for hidden matrices (Jordan et al. 2024, "Muon").
    """
    heads = ("lm_head", "classifier", "score", "embed_out")
    return {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.rsplit(".", 1)[-1] in heads
        for parameter in module.parameters()
    }
