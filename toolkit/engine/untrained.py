"""What belongs to a model and training leaves as it is: buffers that are saved with it, and frozen parameters."""

from __future__ import annotations

import deepspeed
import torch
from torch import nn

from toolkit.engine.batch_norm import moving_buffers


def untrained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Persistent buffers, but for those of batch norms, and parameters without gradient, whole, on the CPU, by name.
    Collective under ZeRO-3."""
    saved = model.state_dict().keys() - moving_buffers(model)
    found = {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name in saved}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter] if hasattr(parameter, "ds_id") else []):
                found[name] = parameter.detach().cpu().clone()
    return found
