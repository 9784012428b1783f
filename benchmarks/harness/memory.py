"""Memory that a piece of work needs beyond what is there before it: device memory on CUDA, resident set on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

GIB = 2**30


def peak_gib_of(work: Callable[[], None]) -> float:
    """Peak during `work` above what is held when it begins, GiB. Linux only on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / GIB
    # 5: set the high-water mark of the resident set to its present size (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / GIB


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)
