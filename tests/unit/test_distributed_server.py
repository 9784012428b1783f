"""The server that runs the multi-rank tests: it works, and it cannot hide a failure."""

from __future__ import annotations

import ctypes
import os
import pickle
import time

import pytest

from tests.distributed import RankFailed, run_distributed


def all_reduce(rank: int, world_size: int, factor: int) -> tuple[list[float], str, str]:
    import deepspeed.comm
    import torch

    value = torch.full((2,), float(factor * (rank + 1)))
    deepspeed.comm.all_reduce(value)
    print("not shown when all is well")
    return value.tolist(), os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]


def send_tensor(rank: int, world_size: int) -> object:
    import torch

    assert torch.get_num_threads() == 1
    return torch.arange(3) + rank


def raise_on_rank_1(rank: int, world_size: int) -> None:
    import torch.distributed

    print(f"rank {rank} speaks")
    if rank == 1:
        raise ValueError("only rank 1 is wrong")
    torch.distributed.barrier()


def crash_on_rank_1(rank: int, world_size: int) -> None:
    import torch.distributed

    if rank == 1:
        ctypes.string_at(0)
    torch.distributed.barrier()


def hang_on_rank_0(rank: int, world_size: int) -> None:
    import torch.distributed

    if rank == 0:
        sleep_for_long()
    torch.distributed.barrier()


def sleep_for_long() -> None:
    time.sleep(600)


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_reduce(world_size: int, capfd: pytest.CaptureFixture[str]) -> None:
    run_distributed(all_reduce, 1, 1)
    started = time.perf_counter()
    results = run_distributed(all_reduce, world_size, 10)
    seconds = time.perf_counter() - started
    total = 10.0 * sum(range(1, world_size + 1))
    assert results == [([total, total], str(rank), str(world_size)) for rank in range(world_size)]
    assert "not shown" not in "".join(capfd.readouterr())
    with capfd.disabled():
        print(f"[{world_size} ranks, warm: {seconds:.2f} s]", end=" ")
    assert seconds < 20, "a warm call must not import the packages again"


def test_tensors_come_back_by_value() -> None:
    assert [result.tolist() for result in run_distributed(send_tensor, 2)] == [[0, 1, 2], [1, 2, 3]]


def test_an_exception_names_its_rank_and_ends_the_others() -> None:
    started = time.perf_counter()
    with pytest.raises(RankFailed) as caught:
        run_distributed(raise_on_rank_1, 2)
    assert "rank 1 raised" in str(caught.value)
    assert "ValueError: only rank 1 is wrong" in str(caught.value)
    assert "rank 1 speaks" in str(caught.value)
    assert time.perf_counter() - started < 20


def test_a_crash_is_reported_with_its_stack() -> None:
    with pytest.raises(RankFailed) as caught:
        run_distributed(crash_on_rank_1, 2)
    assert "rank 1 died with exit code -11" in str(caught.value)
    assert "in crash_on_rank_1" in str(caught.value)


def test_a_hang_is_killed_with_the_stacks_of_all_ranks() -> None:
    started = time.perf_counter()
    with pytest.raises(RankFailed) as caught:
        run_distributed(hang_on_rank_0, 2, timeout_s=5)
    assert time.perf_counter() - started < 15
    assert "not done after 5 s: rank 0, 1" in str(caught.value)
    assert "in sleep_for_long" in str(caught.value)
    assert "in barrier" in str(caught.value)


def test_a_function_inside_a_function_is_refused_at_once() -> None:
    def local(rank: int, world_size: int) -> None:
        return None

    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        run_distributed(local, 1)
