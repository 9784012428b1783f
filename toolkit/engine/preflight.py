"""What a device really does: matrix products, copies, all-reduce; a second or less each. Runs on any device of torch's."""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

BUDGET_S = 0.4
"""Seconds that one measurement repeats itself for, after a first run that is not counted."""

Device = torch.device


def cuda_of_driver(library: str = "libcuda.so.1") -> int | None:
    """The newest CUDA that the driver supports, 12080 for 12.8; None without a driver. torch has no name for it."""
    try:
        driver = ctypes.CDLL(library)
        version = ctypes.c_int(0)
        return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None
    except (OSError, AttributeError):
        return None


def product_tflops(device: Device, dtype: torch.dtype, size: int = 8192) -> float:
    """TFLOPS of the product of two square matrices of random numbers, `size` wide; zeros would draw less power."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _seconds(lambda: torch.mm(left, right, out=out), device) / 1e12


def copy_gbps(source: Device, target: Device, num_bytes: int = 2**28) -> float:
    """GB (10^9 bytes) per second from `source` to `target`; beside a GPU the host's memory is pinned."""
    pinned = "cuda" in (source.type, target.type)
    ends = [
        torch.ones(num_bytes, dtype=torch.uint8, device=end, pin_memory=pinned and end.type == "cpu")
        for end in (source, target)
    ]
    waits_on = source if source.type == "cuda" else target
    return num_bytes / _seconds(lambda: ends[1].copy_(ends[0], non_blocking=True), waits_on) / 1e9


def memory_gbps(device: Device, num_bytes: int = 2**30) -> float:
    """GB per second that a copy inside the device's memory reads and writes."""
    return 2 * copy_gbps(device, device, num_bytes)


def all_reduce_gbps(world_size: int, backend: str, num_bytes: int = 2**28, timeout_s: float = 60.0) -> float:
    """Bus bandwidth of an all-reduce between `world_size` devices of this host: 2 (n - 1) / n x bytes / seconds.

    The measure of nccl-tests: that of the slowest link, whatever the number of devices. Each has a process of its own.
    Raises RuntimeError where they do not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-all-reduce-") as folder:
        arguments = (world_size, backend, num_bytes, folder, timeout_s)
        ranks = multiprocessing.start_processes(_reduce, arguments, world_size, join=False, start_method="spawn")  # type: ignore[attr-defined, no-untyped-call]
        deadline = time.monotonic() + timeout_s
        try:
            while not ranks.join(timeout=1.0):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not done after {timeout_s:g} s")
        finally:
            for process in ranks.processes:
                if process.is_alive():
                    process.kill()
        seconds = float((Path(folder) / "seconds").read_text(encoding="ascii"))
    return 2 * (world_size - 1) / world_size * num_bytes / seconds / 1e9


def _reduce(rank: int, world_size: int, backend: str, num_bytes: int, folder: str, timeout_s: float) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )
    tensor = torch.ones(num_bytes // 4, device=device)
    # As many times on every rank: none may stop by its own clock.
    seconds = _seconds(lambda: dist.all_reduce(tensor, op=dist.ReduceOp.MAX), device, times=10)
    if rank == 0:
        (Path(folder) / "seconds").write_text(repr(seconds), encoding="ascii")
    dist.barrier()
    dist.destroy_process_group()


def _seconds(action: Callable[[], object], device: Device, times: int | None = None) -> float:
    """Seconds of one `action`, the mean of `times` runs, by default of as many as fit into BUDGET_S."""
    single = _run(action, device, 1) if times else min(_run(action, device, 1), _run(action, device, 1))
    return _run(action, device, times or max(1, int(BUDGET_S / max(single, 1e-6))))


def _run(action: Callable[[], object], device: Device, times: int) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        action()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: Device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
