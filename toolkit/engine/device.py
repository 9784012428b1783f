"""The device under this process. The one module that asks which kind it is."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from typing import Literal

import torch
from deepspeed.accelerator import get_accelerator

from toolkit.ds_config.target import Target
from toolkit.engine.kernels import nvcc_fault, plain_architectures
from toolkit.errors import LaunchError, plural
from toolkit.processor import RETURNED, memory_limit, multiplies_bf16

GIB = 1024**3


def kind() -> Literal["cpu", "cuda"]:
    """The kind of device DeepSpeed computes on here. Raises LaunchError for one that is neither."""
    name = get_accelerator().device_name()
    if name == "cpu":
        return "cpu"
    if name != "cuda":
        raise LaunchError(
            f"DeepSpeed has found a device of kind {name!r}",
            expected="CUDA devices (ROCm's count as such), or none",
            do="set DS_ACCELERATOR=cpu to compute on the CPU",
        )
    return "cuda"


def current() -> torch.device:
    """This rank's device."""
    return torch.device(get_accelerator().current_device_name())


def target(world_size: int, *, wanted: str, model_ranks: int = 1) -> Target:
    """What this machine can do, for `render`. Raises LaunchError when the recipe wants another kind of device."""
    device = kind()
    if wanted not in ("auto", device):
        raise LaunchError(
            f"launch.device={wanted!r}, but this process sees {torch.cuda.device_count()} CUDA devices and computes on {device}",
            expected=f"at least one {wanted} device",
            do="check CUDA_VISIBLE_DEVICES and the driver, or run with --launch.device auto",
        )
    accelerator = get_accelerator()
    bf16 = bool(accelerator.is_bf16_supported())
    return Target(
        world_size,
        device,
        has_compiler(),
        nvcc_fault(torch.version.cuda) if device == "cuda" else "",
        bf16=bf16,
        fp16=bool(accelerator.is_fp16_supported()),
        fp8=multiplies_fp8(),
        bf16_is_native=bf16 and (device == "cuda" or multiplies_bf16()),
        model_ranks=model_ranks,
    )


def swaps_to_disk() -> bool:
    """Whether DeepSpeed can build here what offload to NVMe reads and writes with."""
    return bool(get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False))


def multiplies_fp8() -> bool:
    """Whether this device has tensor cores for fp8: compute capability 8.9 (Ada) or later."""
    return kind() == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


def use_tf32(wanted: bool) -> None:
    """Let fp32 matrices be multiplied in TF32, or not. On CUDA only: on a CPU the same setting means bf16."""
    if kind() == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")


def has_compiler() -> bool:
    """Whether DeepSpeed could build a CPU kernel here."""
    return shutil.which(os.environ.get("CXX", "c++")) is not None or shutil.which("g++") is not None


def prepare(local_rank: int, local_world_size: int, *, host_optimizer: bool = False) -> None:
    """Bind this process to its device, and give it its share of the host's cores where it computes on them.

    That is on a CPU device, and with `host_optimizer` beside any other. OMP_NUM_THREADS decides where it is set.
    """
    threads = threads_of_rank(local_world_size, os.environ.get("OMP_NUM_THREADS"), on_cpu=kind() == "cpu")
    if threads is not None and (host_optimizer or kind() == "cpu"):
        torch.set_num_threads(threads)
    if kind() == "cuda":
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise LaunchError(
                f"local rank {local_rank} has no device: this host shows {count}",
                expected=f"at most {count} processes on this host",
                do=f"start with --num_gpus {count} (deepspeed) or --nproc_per_node {count} (torchrun), or check CUDA_VISIBLE_DEVICES",
            )
        get_accelerator().set_device(local_rank)
        if "TORCH_CUDA_ARCH_LIST" in os.environ:
            os.environ["TORCH_CUDA_ARCH_LIST"] = plain_architectures(os.environ["TORCH_CUDA_ARCH_LIST"])


def threads_of_rank(local_world_size: int, exported: str | None, *, on_cpu: bool) -> int | None:
    """Threads for a rank that shares this host's cores with others; None where OMP_NUM_THREADS, as `exported`, stays.

    Beside a GPU the only work on the cores is the optimizer's. torchrun and accelerate export 1 there when nobody asked
    for anything, which would leave it a single core; any other number is somebody's wish.
    """
    if exported is not None and (on_cpu or exported != "1"):
        return None
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)


def use_growing_segments() -> None:
    """On CUDA let the allocator grow its segments, so that sizes that change from step to step leave no unusable gaps.

    Call it before the device is used: the setting is read once. What the environment says stays.
    """
    # torch 2.9 gave the variable its shorter name; one of the two is read whatever the release.
    if kind() == "cuda" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def return_freed_memory() -> bool:
    """On a CPU give every tensor of 2 MiB and more back to the system when it is freed. Returns whether that is set.

    Parameters that ZeRO-3 gathers and drops, layer after layer, otherwise leave gaps in the heap that nothing fits in:
    a model of 235 million parameters held twice what it needed, and from 4 MiB on, most of the parameters of one of 135
    million still left them. MALLOC_MMAP_THRESHOLD_ in the environment stays.
    """
    if kind() != "cpu" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    # glibc's; other C libraries have none. Setting the threshold also stops glibc from raising it by itself.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, RETURNED) == 1


_M_MMAP_THRESHOLD = -3
"""malloc.h."""


def has_own_memory() -> bool:
    """Whether there is a host memory to offload to. On a CPU everything is in it, and nothing can be pinned."""
    return kind() != "cpu"


def synchronize() -> None:
    """Wait for the device's queued work, so that a clock read afterwards is honest."""
    if kind() == "cuda":
        torch.cuda.synchronize()


def total_memory() -> int:
    """Bytes of this rank's device; on a CPU those of the host, or of its container."""
    if kind() == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return memory_limit()


def peak_memory_gib() -> float:
    """Most memory this rank has held: on CUDA in tensors since `forget_peak_memory`, on a CPU resident since it began."""
    if kind() == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def reserved_memory_gib() -> float | None:
    """Most memory that torch has taken from a CUDA device since `forget_peak_memory`: tensors, and gaps between them."""
    return torch.cuda.max_memory_reserved() / GIB if kind() == "cuda" else None


def forget_peak_memory() -> None:
    """Let the peaks begin anew with what is held now. A CPU's resident set has only one, of the whole process."""
    if kind() == "cuda":
        torch.cuda.reset_peak_memory_stats()


def gpu_name() -> str | None:
    """As torch names this rank's device; None on a CPU."""
    return torch.cuda.get_device_name() if kind() == "cuda" else None


def versions() -> str:
    """One line: torch, DeepSpeed, device."""
    import deepspeed

    threads = torch.get_num_threads()
    name = gpu_name() or "cpu"
    return f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, {name}, {plural(threads, 'thread')} per rank"
