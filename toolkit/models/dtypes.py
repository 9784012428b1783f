"""The number formats of recipes and configurations, as torch calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from toolkit.ds_config.render import weights_dtype

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The format of the weights under a rendered configuration."""
    return DTYPES[weights_dtype(config)]
