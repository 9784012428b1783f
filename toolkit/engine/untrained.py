"""What belongs to a model and training leaves as it is: buffers that are saved with it, and frozen parameters."""

from __future__ import annotations

import deepspeed
import torch
from torch import nn

from toolkit.engine.own_buffers import own_buffers
from toolkit.errors import first_few


def untrained_tensors(model: nn.Module, *, moves_buffers: bool = False) -> dict[str, torch.Tensor]:
    """Persistent buffers, but for those of batch norms, and parameters without gradient, whole, on the CPU, by name;
    `moves_buffers`: no buffers. Collective under ZeRO-3."""
    fixed = () if moves_buffers else own_buffers(model)
    found = {name: model.get_buffer(name).detach().cpu() for name in fixed}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter] if hasattr(parameter, "ds_id") else []):
                found[name] = parameter.detach().cpu().clone()
    return found


def describe_frozen(model: nn.Module) -> str | None:
    """What has no gradient of all parameters of `model`, in a line; None: all have one."""
    sizes = {
        name: int(getattr(parameter, "ds_numel", parameter.numel())) for name, parameter in model.named_parameters()
    }
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not frozen:
        return None
    size = sum(sizes[name] for name in frozen)
    return f"{size:,} of {sum(sizes.values()):,} parameters stay as they are: {first_few(frozen, 2)}"
