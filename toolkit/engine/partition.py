"""ZeRO-3's partitioning of a model that is filled parameter by parameter: each is whole for as long as it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepspeed
from torch import nn

from toolkit.engine import device
from toolkit.models.partial import Placed


def partitioner(config: Mapping[str, Any]) -> Placed | None:
    """What keeps this rank's share of a parameter, which all ranks hand in alike; None below stage 3. Collective."""
    if config["zero_optimization"]["stage"] < 3:
        return None
    # What transformers opens around a whole model, for one parameter at a time.
    zero = deepspeed.zero.Init(config_dict_or_path=dict(config), enabled=True)
    return lambda parameter: zero._convert_to_zero_parameters([parameter])


def move_buffers(model: nn.Module) -> None:
    """Bring the buffers of a partitioned model to the device: DeepSpeed moves models that it has not partitioned only."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device.current())
