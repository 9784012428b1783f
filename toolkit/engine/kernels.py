"""The folder where DeepSpeed's CPU kernels are compiled at first use. Imports no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.errors import LaunchError

KERNELS = {"cpu_adam": "CPUAdamBuilder", "cpu_adagrad": "CPUAdagradBuilder", "cpu_lion": "CPULionBuilder"}
"""What optimizer offload may need: name -> builder of DeepSpeed's."""
NVME_KERNELS = {"async_io": "AsyncIOBuilder", "pin_memory": "PinMemoryBuilder"}
"""What offload to NVMe needs besides, and what needs libaio to be built."""

_BUILD = (
    "from toolkit.engine import build_lock; build_lock.use(); "
    "from deepspeed.accelerator import get_accelerator as a; a().create_op_builder({builder!r}).load(verbose=False)"
)


CUDA_RELEASE = re.compile(r"release (\d+)\.(\d+)")


def nvcc_fault(built_for: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Why GPU kernels cannot be built for a torch of CUDA `built_for`; empty where they can, or torch knows no CUDA.

    Looks where torch's extensions look (torch.utils.cpp_extension). Another minor version is compatible; another major
    one DeepSpeed refuses with CUDAMismatchException, or links two CUDA runtimes into one process.
    """
    if built_for is None:
        return ""
    skips = environment.get("DS_SKIP_CUDA_CHECK") == "1"
    return nvcc_mismatch(nvcc_release(nvcc_path(environment)), built_for, skips=skips)


def nvcc_mismatch(release: tuple[int, int] | None, built_for: str, *, skips: bool = False) -> str:
    """`nvcc_fault` for an nvcc of CUDA `release`, or None where there is none; `skips`: DeepSpeed is told not to look."""
    if release is None:
        return "there is no nvcc"
    if release[0] != int(built_for.partition(".")[0]) and not skips:
        return f"nvcc is of CUDA {release[0]}.{release[1]}, torch of CUDA {built_for}"
    return ""


def nvcc_path(environment: Mapping[str, str] = os.environ) -> str:
    """The nvcc that torch's extensions would call, which need not be there."""
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    on_path = shutil.which("nvcc", path=environment.get("PATH"))
    return f"{home}/bin/nvcc" if home else on_path or "/usr/local/cuda/bin/nvcc"


def nvcc_release(nvcc: str) -> tuple[int, int] | None:
    """The CUDA version of `nvcc`; None where it does not run."""
    try:
        done = subprocess.run([nvcc, "-V"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    release = CUDA_RELEASE.search(done.stdout)
    return (int(release[1]), int(release[2])) if release else None


def plain_architectures(listed: str) -> str:
    """`listed`, a TORCH_CUDA_ARCH_LIST, as DeepSpeed can read it: 9.0 for 9.0a.

    It takes every part of a version for a number (op_builder/builder.py, compute_capability_args), and none of its kernels
    uses what the letter stands for.
    """
    return re.sub(r"(\d+\.\d+)[a-z]+", r"\1", listed)


def build(kernels: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Compile `kernels` now, as many at a time as there are cores, instead of one by one at first use.

    What is built already is left alone. Raises LaunchError with the compiler's last words.
    """
    own_ninja_first()

    def build_one(name: str) -> None:
        command = [sys.executable, "-c", _BUILD.format(builder=kernels[name])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-3:]
            raise LaunchError(
                f"DeepSpeed's kernel {name} does not build: {' | '.join(last)}",
                expected="a C++ compiler and ninja that torch's extensions build with",
                do="see `toolkit doctor`; runs with optimizer.implementation='torch' need no kernel",
            )
        say(f"{name} is built")

    with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(build_one, kernels))


def extensions_root() -> Path:
    """Where torch keeps what it compiles."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(cache) / "torch_extensions"


def locks(root: Path) -> list[Path]:
    """Lock files of builds under `root`, running or killed."""
    return sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})


def holder(file: Path, processes: Path = Path("/proc")) -> int | None:
    """The process that has `file` open; None if none of those we may look at has."""
    wanted = file.stat()
    for descriptor in processes.glob("[0-9]*/fd/*"):
        try:
            status = descriptor.stat()
        except OSError:  # ended meanwhile, or another user's
            continue
        if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
            return int(descriptor.parts[-3])
    return None


def own_ninja_first() -> None:
    """Put this Python's ninja first on PATH.

    Every kernel is built anew, a minute each, whenever another version of ninja comes first than did the last time.
    """
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    if beside is not None and shutil.which("ninja") != beside:
        os.environ["PATH"] = os.pathsep.join([str(Path(beside).parent), os.environ.get("PATH", os.defpath)])
