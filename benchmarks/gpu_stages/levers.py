"""Levers: values of recipe fields that make a run faster or smaller, and what a machine needs for them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HAS_FP8 = (8, 9)
"""CUDA compute capability from which on there are fp8 matrix products (Ada, Hopper)."""

PACKAGES = {"fp8": "torchao", "torchao": "torchao", "liger": "liger_kernel"}
"""Need -> the optional package that does it."""


@dataclass(frozen=True)
class Lever:
    """Fields of the recipe, by dotted name, that are switched together."""

    name: str
    fields: Mapping[str, Any]
    needs: str = ""
    """"cuda", and on such a device "fp8", "nvcc" or a Python package; empty: every machine has it."""
    rounding: str = field(default="fp32", compare=False)
    """The number format whose rounding separates it from plain PyTorch: a key of smoke.TOLERANCES."""


def lacking(lever: Lever, device: str) -> str:
    """What this machine lacks for `lever`; empty where it has all."""
    if lever.needs and device != "cuda":
        return "needs a CUDA device"
    if lever.needs == "fp8":
        import torch

        if torch.cuda.get_device_capability() < HAS_FP8:
            return "needs a device with fp8 matrix products"
    if lever.needs == "nvcc":
        return "" if has_nvcc() else "needs nvcc: DeepSpeed builds its kernel at first use"
    package = PACKAGES.get(lever.needs)
    return f"needs the package {package}" if package and importlib.util.find_spec(package) is None else ""


def has_nvcc() -> bool:
    """Whether the CUDA compiler is here, with which DeepSpeed builds its kernels."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") is not None or (Path(home) / "bin" / "nvcc").is_file()
