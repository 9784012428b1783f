"""Levers: values of recipe fields that make a run faster or smaller, and what a machine needs for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

HAS_FP8 = (8, 9)
"""CUDA compute capability from which on there are fp8 matrix products (Ada, Hopper)."""


@dataclass(frozen=True)
class Lever:
    """Fields of the recipe, by dotted name, that are switched together."""

    name: str
    fields: Mapping[str, Any]
    needs: str = ""
    """"cuda", and on such a device "fp8", "compiler" or "nvcc"; empty: every machine has it."""
    rounding: str = field(default="fp32", compare=False)
    """The number format whose rounding separates it from plain PyTorch: a key of smoke.TOLERANCES."""


def is_known(lever: Lever) -> bool:
    """Whether this toolkit's recipe has all fields of `lever`, and takes their values."""
    from pydantic import TypeAdapter, ValidationError

    from toolkit import Recipe

    for name, value in lever.fields.items():
        section, _, last = name.partition(".")
        kind: Any = Recipe.model_fields[section].annotation
        found = kind.model_fields.get(last)
        if found is None:
            return False
        try:
            TypeAdapter(Annotated[found.annotation, *(found.metadata or [None])]).validate_python(value)
        except ValidationError:
            return False
    return True


def lacking(lever: Lever, device: str) -> str:
    """What this machine lacks for `lever`; empty where it has all."""
    if lever.needs and device != "cuda":
        return "needs a CUDA device"
    if lever.needs == "fp8":
        import torch

        if torch.cuda.get_device_capability() < HAS_FP8:
            return "needs a device with fp8 matrix products"
    if lever.needs == "compiler" and shutil.which(os.environ.get("CXX", "c++")) is None:
        return "needs a C++ compiler: DeepSpeed builds its kernel at first use"
    if lever.needs == "nvcc" and not has_nvcc():
        return "needs nvcc: DeepSpeed builds its kernel at first use"
    return ""


def has_nvcc() -> bool:
    """Whether the CUDA compiler is here, with which DeepSpeed builds its kernels."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") is not None or (Path(home) / "bin" / "nvcc").is_file()
