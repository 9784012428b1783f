"""Levers: values of recipe fields that make a run faster or smaller, and what a machine needs for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PACKAGES = {"fp8": "torchao", "torchao": "torchao", "liger": "liger_kernel"}
"""Need -> the optional package that does it."""


@dataclass(frozen=True)
class Lever:
    """Fields of the recipe, by dotted name, that are switched together."""

    name: str
    fields: Mapping[str, Any]
    needs: str = ""
    """"cuda", and on such a device "fp8", "nvcc", "compiler" or a Python package; empty: every machine has it."""
    rounding: str = field(default="fp32", compare=False)
    """The number format whose rounding separates it from plain PyTorch: a key of smoke.TOLERANCES."""


def lacking(lever: Lever, device: str) -> str:
    """What this machine lacks for `lever`; empty where it has all."""
    if lever.needs and device != "cuda":
        return "needs a CUDA device"
    if lever.needs:
        import torch

        from toolkit.engine import device as machine
        from toolkit.engine.kernels import nvcc_fault

        if lever.needs == "fp8" and not machine.multiplies_fp8():
            return "needs a device with fp8 matrix products"
        if lever.needs == "nvcc" and (fault := nvcc_fault(torch.version.cuda)):
            return f"needs nvcc, with which DeepSpeed builds its kernel at first use: {fault}"
        if lever.needs == "compiler" and not machine.has_compiler():
            return "needs g++: DeepSpeed builds its kernel at first use"
    package = PACKAGES.get(lever.needs)
    return f"needs the package {package}" if package and importlib.util.find_spec(package) is None else ""
