"""Memory that a piece of work needs: device memory on CUDA, resident set on a CPU."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

GIB = 2**30


def peak_gib_of(work: Callable[[], None]) -> float:
    """Peak during `work` above what is held when it begins, GiB. Linux only on a CPU."""
    before = reset_peak()
    work()
    return peak_gib() - before


def reset_peak() -> float:
    """Begin a new peak; GiB that are held now."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / GIB
    # 5: set the high-water mark of the resident set to its present size (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") / GIB


def peak_gib() -> float:
    """Most GiB held since `reset_peak`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / GIB
    return _status("VmHWM") / GIB


def outside_gib() -> float:
    """GiB of a CUDA device that are taken, and not by this process's allocator: its context, and whoever else is there."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / GIB


def release() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def allocated_share() -> float:
    """Share of the device's memory that this process holds in tensors; 0 on a CPU, whose memory others use as well."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return 0.0
    return torch.cuda.memory_allocated() / torch.cuda.get_device_properties(0).total_memory


def forget(error: BaseException | None) -> None:
    """Let go of the tensors in the frames that `error` and what led to it came through, and of what hangs on them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    release()


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)
