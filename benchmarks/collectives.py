"""What ranks of this machine send each other through gloo: bytes per second of each collective, counted as a ring sends.

An all-reduce of n bytes among d ranks sends 2 n (d - 1) / d from each, the others half of it. Each is timed between
barriers, alone on the machine; the fastest of several is given. The planner's rates of a processor's links are these
(`toolkit/plan/devices.py`, `toolkit/plan/speed.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from harness.page import parser, publish, table, tracked
from harness.ranks import is_rank, measure, report
from harness.traffic import Traffic

MILLIONS = (2, 25)
"""Numbers of a tensor, in fp32: a bucket, and a large model's part."""

TIMES = 5


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    options = made.parse_args(arguments)
    sizes = [1000] if options.tiny else [million * 1_000_000 for million in MILLIONS]
    if is_rank():
        report(measure_sizes(sizes))
        return
    rows = []
    for ranks in tracked([2] if options.tiny else [2, 3], "world sizes"):
        found = measure(__file__, arguments, ranks)[0]
        rows += [[name, str(ranks), f"{size / 1e6:g}", f"{rate / 1e9:.2f}"] for name, size, rate in found]
    header = ["", "ranks", "millions of numbers", "GB/s"]
    publish(options, "Collectives through gloo", [str(__doc__).strip(), table(header, rows)])


def measure_sizes(sizes: list[int]) -> list[tuple[str, int, float]]:
    """Name, numbers, and bytes per second of each collective."""
    import torch
    import torch.distributed as dist

    from toolkit.engine import process

    torch.set_num_threads(1)
    process.start(process.from_environment())
    found = []
    for size in sizes:
        for name, work in collectives(size, dist.get_world_size()).items():
            with Traffic() as traffic:
                work()
            found.append((name, size, traffic.sent / fastest(work)))
    return found


def collectives(size: int, ranks: int) -> dict[str, Callable[[], Any]]:
    """Name -> one collective over `size` numbers."""
    import torch
    import torch.distributed as dist

    whole, part = torch.ones(size // ranks * ranks), torch.ones(size // ranks)
    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "reduce": lambda: dist.reduce(whole, 0),
        "all_gather": lambda: dist.all_gather_single(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_single(part, whole),
    }


def fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of several, until every rank is done."""
    import torch.distributed as dist

    best = float("inf")
    for _ in range(TIMES):
        dist.barrier()
        begin = time.perf_counter()
        work()
        dist.barrier()
        best = min(best, time.perf_counter() - begin)
    return best


if __name__ == "__main__":
    main(sys.argv[1:])
