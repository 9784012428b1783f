"""Ranks that are not there: collectives that return at once, for a plan that runs the code of one rank of many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from toolkit.engine import grid, process
from toolkit.engine.tensor_random import LocalRandom


@contextmanager
def pretended_ranks(world_size: int) -> Iterator[None]:
    """Be rank 0 of `world_size` for a while. Not inside a process group that there is."""
    assert not dist.is_initialized(), "a plan is made before the ranks meet"
    process.probe_no_kernels()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    LocalRandom.draws = False
    try:
        # DeepSpeed takes over the group that is there.
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        yield
    finally:
        LocalRandom.draws = True
        grid.forget()
        dist.destroy_process_group()
        deepspeed.comm.comm.cdb = None
