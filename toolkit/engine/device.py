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
from toolkit.errors import LaunchError, plural
from toolkit.processor import multiplies_bf16

GIB = 1024**3


def kind() -> Literal["cpu", "cuda"]:
    """The kind of device DeepSpeed computes on here."""
    return "cpu" if get_accelerator().device_name() == "cpu" else "cuda"


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
        bf16=bf16,
        fp16=bool(accelerator.is_fp16_supported()),
        bf16_is_native=bf16 and (device == "cuda" or multiplies_bf16()),
        model_ranks=model_ranks,
    )


def has_compiler() -> bool:
    """Whether DeepSpeed could build a CPU kernel here."""
    return shutil.which(os.environ.get("CXX", "c++")) is not None or shutil.which("g++") is not None


def prepare(local_rank: int, local_world_size: int) -> None:
    """Bind this process to its device; on a CPU give it its share of the cores unless OMP_NUM_THREADS says otherwise."""
    if kind() == "cuda":
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise LaunchError(
                f"local rank {local_rank} has no device: this host shows {count}",
                expected=f"at most {count} processes on this host",
                do=f"start with --num_gpus {count} (deepspeed) or --nproc_per_node {count} (torchrun), or check CUDA_VISIBLE_DEVICES",
            )
        get_accelerator().set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))


def use_growing_segments() -> None:
    """On CUDA let the allocator grow its segments, so that sizes that change from step to step leave no unusable gaps.

    Call it before the device is used: the setting is read once. What the environment says stays.
    """
    # torch 2.9 renamed the variable and reads the old name still; it refuses neither.
    if kind() == "cuda" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def return_freed_memory() -> None:
    """On a CPU give every tensor of 4 MiB and more back to the system when it is freed.

    Parameters that ZeRO-3 gathers and drops, layer after layer, otherwise leave gaps in the heap that nothing fits in:
    a model of 235 million parameters held twice what it needed. MALLOC_MMAP_THRESHOLD_ in the environment stays.
    """
    if kind() != "cpu" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * 1024**2)


_M_MMAP_THRESHOLD = -3
"""malloc.h."""


def has_own_memory() -> bool:
    """Whether there is a host memory to offload to. On a CPU everything is in it, and nothing can be pinned."""
    return kind() != "cpu"


def cuts_documents() -> bool:
    """Whether many small attention calls beat one with a mask: on a GPU each call costs a launch."""
    return kind() == "cpu"


def synchronize() -> None:
    """Wait for the device's queued work, so that a clock read afterwards is honest."""
    if kind() == "cuda":
        torch.cuda.synchronize()


def peak_memory_gib() -> float:
    """Most memory this rank has held: device memory on CUDA, resident set on a CPU."""
    if kind() == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def versions() -> str:
    """One line: torch, DeepSpeed, device."""
    import deepspeed

    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if kind() == "cuda" else f"cpu, {plural(threads, 'thread')} per rank"
    return f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, {name}"
