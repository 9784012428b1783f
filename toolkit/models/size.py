"""What DeepSpeed's buckets and limits follow from, of a model that need not be built."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig

from toolkit.ds_config.model_size import ModelSize
from toolkit.models.stages import build_skeleton


def model_size(auto_class: Any, config: PretrainedConfig, tensor: int) -> ModelSize:
    """Size of what `auto_class` makes of `config`, divided by `tensor` ranks that share each layer. Nothing is allocated.

    A layer is a member of a list of modules; a model without lists is one layer.
    """
    model = build_skeleton(auto_class, config)
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module] or [model]
    vectors = [parameter.numel() for parameter in model.parameters() if parameter.dim() == 1]
    return ModelSize(-(-max(map(_elements, layers)) // tensor), max(vectors, default=0))


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
