"""The machine and the versions: what every figure depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from harness.stages import Row

from gpu_stages.setting import Setting

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "accelerate", "liger-kernel", "torchao", "flash-attn")
NVIDIA = Path("/proc/driver/nvidia/version")


def rows(setting: Setting) -> list[Row]:
    """One row: the facts."""
    return [Row("facts", lambda _: facts(setting))]


def facts(setting: Setting) -> dict[str, Any]:
    """Device, memory, driver and versions. Raises RuntimeError where the wanted device is missing."""
    import torch
    from harness.page import machine

    found: dict[str, Any] = {"machine": machine(), "host_gib": host_gib()}
    if setting.device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "device_gib": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": NVIDIA.read_text().splitlines()[0].split("  ")[1].strip() if NVIDIA.is_file() else "unknown",
            "cuda": torch.version.cuda,
        }
    else:
        found |= {"device": "cpu", "device_gib": found["host_gib"]}
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return found | {"versions": {name: value for name, value in versions.items() if value}}


def host_gib() -> float:
    """Memory that this process may still take: what is free, or what its control group leaves."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free / 2**30


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def line(found: dict[str, Any]) -> str:
    """The facts as a sentence."""
    device = f"{found['device_gib']:.0f} GiB" if found["device"] != "cpu" else ""
    parts = [found["machine"], device]
    if "cuda" in found:
        parts += [f"driver {found['driver']}", f"CUDA {found['cuda']}", f"compute capability {found['capability']}"]
    parts += [f"{found['host_gib']:.0f} GiB of host memory free", f"{len(os.sched_getaffinity(0))} cores"]
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    return f"{', '.join(part for part in parts if part)}; {versions}"
