"""The machine a configuration is rendered or checked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Target:
    """World size in processes, the kind of device, and what it can compute in."""

    world_size: int
    device: Device
    compiler: bool = True
    """A C++ compiler is present, so DeepSpeed can build its CPU kernels."""
    nvcc_fault: str = ""
    """Why DeepSpeed cannot build GPU kernels, as the end of a sentence; empty where it can."""
    bf16: bool = True
    fp16: bool = True
    fp8: bool = False
    """Tensor cores multiply in fp8."""
    bf16_is_native: bool = True
    """bf16 runs in hardware, so precision "auto" takes it."""
    model_ranks: int = 1
    """Pipeline stages x tensor-parallel ranks: they share each micro-batch, and no key of the JSON names them."""
