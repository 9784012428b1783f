"""The judge's model where adapters are trained: peft's own, and what peft says it has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from toolkit.checkpoint.export_adapters import ADAPTER_WEIGHTS
from toolkit.models.adapters import adapter_config, fill_adapters, peft_library, task_type
from toolkit.train.inputs import Inputs


def adapted(model: nn.Module, inputs: Inputs, seed: int) -> nn.Module:
    """`model`, or peft's model around it with the adapters that a run of `seed` begins with."""
    if inputs.adapters is None:
        return model
    kind = inputs.task.auto_class
    config = adapter_config(inputs.adapters, base=None, task_type=task_type(kind))
    tuned: Any = peft_library().get_peft_model(model, config)
    # The starting point is not what is compared.
    fill_adapters(tuned.get_base_model(), inputs.adapters, seed)
    network: nn.Module = tuned
    return network


def trained_weights(model: nn.Module, masters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`masters`, fp32, by their names in the run's export: those of the parameters, or those of peft's file."""
    if not hasattr(model, "peft_config"):
        return masters
    named = dict(model.float().named_parameters())
    with torch.no_grad():
        for name, master in masters.items():
            named[name].copy_(master)
    found: dict[str, torch.Tensor] = peft_library().get_peft_model_state_dict(model)
    return {name: value.detach().clone() for name, value in found.items()}


def exported_weights(export: Path, kind: Any) -> dict[str, torch.Tensor]:
    """The weights of an export by name, adapters or whole models alike."""
    if (export / ADAPTER_WEIGHTS).is_file():
        adapters: dict[str, torch.Tensor] = load_file(export / ADAPTER_WEIGHTS)
        return adapters
    model = kind.from_pretrained(export, dtype=torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
