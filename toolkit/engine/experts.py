"""Mixture-of-experts under ZeRO-3: what the router decides must not decide which weights a rank asks the others for."""

from __future__ import annotations

from deepspeed.utils import set_z3_leaf_modules_by_name
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

EXPERTS = "experts"
"""The name transformers' architectures give the module that holds the experts of a layer."""


UNCALLED = ("JetMoeMoA",)
"""Classes of such modules that are used by their methods, never called: their parts are gathered one by one."""


def gather_layers_whole(model: nn.Module) -> list[str]:
    """Make each layer one unit of ZeRO-3, for `toolkit.models.compile`; returns their names. Before DeepSpeed is set up.

    Hooks inside a layer would break its compiled code at every linear. Gathered at once are the weights of the whole
    layer, also where a layer between has taken its part already.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    if names:
        set_z3_leaf_modules_by_name(model, names)
    return names


def gather_experts_whole(model: nn.Module) -> list[str]:
    """Make each module that runs experts one unit of ZeRO-3; returns their names. Call it before DeepSpeed is set up.

    ZeRO-3 gathers weights in the order in which modules are called, and all ranks must agree on it. A rank whose
    tokens skip an expert calls fewer modules, and DeepSpeed ends with "Detected a disagreement on list" in the first
    step. A leaf is gathered whole, and its gradients, zero for experts that were skipped, are reduced when it has run
    (deepspeed/utils/z3_leaf_module.py). By itself DeepSpeed knows Mixtral, Qwen2-MoE and Qwen3-MoE.
    """
    found = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == EXPERTS]
    names = [
        # A plain list is never called: then the block around it picks the experts.
        name.rpartition(".")[0] if type(module).forward is nn.Module.forward else name
        for name, module in found
        if type(module).__name__ not in UNCALLED
    ]
    if names:
        set_z3_leaf_modules_by_name(model, names)
    return names
