"""How large a model and its layers are, counted on a skeleton without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.ds_config.model_size import ModelSize
from toolkit.models.adapter_plan import AdapterPlan
from toolkit.models.config import unbuildable
from toolkit.models.stages import build_skeleton


def model_size(
    auto_class: Any, config: PretrainedConfig, fields: Mapping[str, Any], adapters: AdapterPlan | None = None
) -> ModelSize:
    """Of what `auto_class` makes of `config`, of which `fields` were asked for. Without transformers' layers it is one layer.

    With `adapters` they are what is trained.
    Raises ModelError where no model can be built of `config`.
    """
    try:
        model = build_skeleton(auto_class, config)
    except Exception as error:
        # Every architecture fails in its own way on what it lacks (a package, a field).
        raise unbuildable(fields, error) from None
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] or [model]
    vectors = [parameter.numel() for parameter in model.parameters() if parameter.dim() < 2]
    size = ModelSize(max(map(_parameters, layers)), max(vectors, default=0))
    return size if adapters is None else replace(size, trained=adapters.trained)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
