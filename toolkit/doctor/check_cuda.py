"""Checks of CUDA's parts against each other: the driver, the GPU, torch's build, the compiler."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.doctor.finding import Check, Finding
from toolkit.engine import kernels

_DEVICE = Path("/dev/nvidia0")
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)$")


@dataclass(frozen=True)
class CudaFacts:
    """What a host says of its CUDA."""

    torch: str
    """Its version."""
    built_for: str | None
    """The CUDA that torch was built for; None for a CPU build."""
    available: bool
    """Whether torch can use a GPU."""
    has_gpu: bool
    """Whether the kernel has a device for one."""
    driver: int | None
    """The newest CUDA that the driver supports, 12080 for 12.8."""
    architectures: tuple[str, ...] = ()
    """What torch has kernels for: sm_80 and the like, compute_90 for code that the driver translates."""
    devices: tuple[tuple[str, tuple[int, int]], ...] = ()
    """Name and compute capability of each."""
    nvcc: str = ""
    """The nvcc that kernels would be compiled with, which need not be there."""
    release: tuple[int, int] | None = None
    """Its CUDA."""
    toolkits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """CUDA by folder of every toolkit in the usual place."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES."""


def has_gpu() -> bool:
    """Whether the kernel has a device for an NVIDIA GPU. Asks no library."""
    return _DEVICE.exists()


def probe() -> CudaFacts:
    """Ask this host."""
    import torch

    from toolkit.engine import preflight

    nvcc = kernels.nvcc_path()
    available = torch.cuda.is_available()
    numbers = range(torch.cuda.device_count()) if available else range(0)
    concerns_gpu = available or has_gpu()
    return CudaFacts(
        torch=torch.__version__,
        built_for=torch.version.cuda,
        available=available,
        has_gpu=has_gpu(),
        driver=preflight.cuda_of_driver(),
        architectures=tuple(torch.cuda.get_arch_list()),
        devices=tuple((torch.cuda.get_device_name(one), torch.cuda.get_device_capability(one)) for one in numbers),
        nvcc=nvcc,
        release=kernels.nvcc_release(nvcc) if concerns_gpu else None,
        toolkits=_toolkits() if concerns_gpu else {},
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _toolkits(root: Path = Path("/usr/local")) -> dict[str, tuple[int, int]]:
    releases = {str(home): kernels.nvcc_release(str(home / "bin" / "nvcc")) for home in sorted(root.glob("cuda-*"))}
    return {home: release for home, release in releases.items() if release is not None}


def check_cuda(facts: CudaFacts | None = None) -> Iterator[Finding]:
    """What `facts`, by default those of this host, mean for a run."""
    facts = probe() if facts is None else facts
    yield check_devices(facts)
    if facts.built_for is None or not (facts.has_gpu or facts.available):
        return
    yield check_driver(facts.driver, facts.built_for)
    for device, capability in dict.fromkeys(facts.devices):
        yield check_architecture(device, capability, facts.architectures)
    yield check_nvcc(facts)


def check_devices(facts: CudaFacts) -> Finding:
    """Whether torch can use the GPU that is there."""
    check = Check(
        "CUDA devices", "launch.device='auto' takes the CPU where torch sees no GPU, and is slower by two orders"
    )
    if facts.available:
        names = [name for name, _ in facts.devices]
        listed = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        return check.ok(f"{listed}; torch {facts.torch} is built for CUDA {facts.built_for}")
    if not facts.has_gpu:
        return check.ok("none; runs use the CPU")
    if facts.built_for is None:
        fix = (
            "pip install --force-reinstall torch from an index with CUDA builds (the command: pytorch.org/get-started)"
        )
        return check.warn(f"there is a GPU, but torch {facts.torch} is a CPU build", fix)
    if facts.visible is not None and facts.visible.strip() in ("", "-1", "NoDevFiles"):
        return check.warn(f"hidden by CUDA_VISIBLE_DEVICES={facts.visible!r}", "unset CUDA_VISIBLE_DEVICES")
    if facts.driver is None:
        fix = "install or load the driver, and see what it says: nvidia-smi (in a container: start it with --gpus all)"
        return check.warn("there is a GPU, but no driver answers (libcuda.so.1)", fix)
    return check.warn("torch cannot use the GPU", "python -c 'import torch; torch.cuda.init()', which says why")


def check_driver(driver: int | None, built_for: str | None) -> Finding:
    """CUDA `driver` (12080 is 12.8), the newest that it supports, against the CUDA that torch is `built_for`."""
    check = Check("driver", "a torch built for a newer CUDA than the driver knows finds no GPU, or no kernel")
    if driver is None or built_for is None:
        return check.ok("not NVIDIA's, or it does not say what it supports")
    supports = (driver // 1000, driver % 1000 // 10)
    needs = tuple(int(part) for part in built_for.split(".")[:2])
    found = f"supports CUDA {supports[0]}.{supports[1]}, torch is built for {built_for}"
    update = f"update the driver to one that supports CUDA {built_for} (nvidia-smi names the present one)"
    if supports[0] < needs[0]:
        return check.fail(found, f"{update}, or install a torch for CUDA {supports[0]} (pytorch.org/get-started)")
    if supports < needs:
        return check.warn(f"{found}: code that the driver translates may not load", update)
    return check.ok(found)


def check_architecture(device: str, capability: tuple[int, int], architectures: tuple[str, ...]) -> Finding:
    """Whether torch has kernels for `device`: of its own generation, or in a form that the driver translates."""
    check = Check(
        "GPU architecture", "without a kernel for the GPU the first operation ends with `no kernel image is available`"
    )
    found = f"{device} is sm_{capability[0]}{capability[1]}"
    if not architectures:
        return check.ok(f"{found}; torch does not say what it is built for")
    built = [(kind, (int(major), int(minor)), suffix) for kind, major, minor, suffix in _parsed(architectures)]
    for kind, wanted, suffix in built:
        # Code of one generation runs on later members of it; "a" is for one of them alone, "f" for its family.
        runs = wanted == capability if suffix == "a" else wanted[0] == capability[0] and wanted[1] <= capability[1]
        if kind == "sm" and runs:
            return check.ok(f"{found}, and torch has kernels for it")
    listed = f"torch has kernels for {', '.join(architectures)}"
    if any(kind == "compute" and wanted <= capability and not suffix for kind, wanted, suffix in built):
        fix = "pip install --upgrade torch, whose kernels need no translation"
        return check.warn(f"{found}, {listed}: the driver translates them at the first start, for minutes", fix)
    newer = capability > max(wanted for _, wanted, _ in built) if built else False
    fix = (
        "pip install --upgrade torch"
        if newer
        else "install an older torch, or one for an older CUDA (pytorch.org/get-started)"
    )
    return check.fail(f"{found}, {listed}", fix)


def _parsed(architectures: tuple[str, ...]) -> list[tuple[str, str, str, str]]:
    matches = (_ARCHITECTURE.match(name) for name in architectures)
    return [(match[1], match[2], match[3], match[4]) for match in matches if match]


def check_nvcc(facts: CudaFacts) -> Finding:
    """Whether DeepSpeed's GPU kernels (FusedAdam, FusedLion) can be built. The default optimizer needs none."""
    check = Check(
        "nvcc", "only optimizer.implementation='deepspeed' and lion compile GPU kernels; nothing else needs it"
    )
    built_for = facts.built_for or ""
    fault = kernels.nvcc_mismatch(facts.release, built_for)
    major = int(built_for.partition(".")[0])
    if not fault and facts.release is not None:
        same = "" if built_for.startswith("{}.{}".format(*facts.release)) else ", which the same major version allows"
        return check.ok(f"CUDA {facts.release[0]}.{facts.release[1]} at {facts.nvcc}, torch's is {built_for}{same}")
    fitting = [home for home, release in facts.toolkits.items() if release[0] == major]
    fix = (
        f"export CUDA_HOME={fitting[-1]}"
        if fitting
        else f"install the CUDA toolkit {built_for}, and export CUDA_HOME=its folder"
    )
    return check.warn(f"{fault} ({facts.nvcc}): DeepSpeed's GPU kernels cannot be built", fix)
