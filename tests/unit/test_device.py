"""What a host and its device can do: kinds of device, threads of a rank, nvcc against torch, and who needs which compiler."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.distributed import run_distributed
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.engine import device
from toolkit.engine.kernels import nvcc_fault, plain_architectures
from toolkit.errors import LaunchError, RecipeError
from toolkit.recipe import Batch, Data, Model, Optimizer, Parallel, Recipe

FAULT = "nvcc is of CUDA 13.0, torch of CUDA 12.8"


def test_a_device_that_is_neither_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "npu"))
    with pytest.raises(LaunchError, match="DeepSpeed has found a device of kind 'npu'") as caught:
        device.kind()
    assert "DS_ACCELERATOR=cpu" in caught.value.do


def test_threads_of_a_rank() -> None:
    cores = len(os.sched_getaffinity(0))
    for on_cpu in (True, False):
        assert device.threads_of_rank(1, None, on_cpu=on_cpu) == cores
        assert device.threads_of_rank(2 * cores, None, on_cpu=on_cpu) == 1
        assert device.threads_of_rank(1, "3", on_cpu=on_cpu) is None, "somebody's wish"
    assert device.threads_of_rank(1, "1", on_cpu=True) is None
    assert device.threads_of_rank(1, "1", on_cpu=False) == cores, "a launcher's default, beside a GPU"


def fake_nvcc(folder: Path, says: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvcc").write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder


def test_nvcc_against_the_cuda_of_torch(tmp_path: Path) -> None:
    home = fake_nvcc(tmp_path / "cuda", "Cuda compilation tools, release 13.0, V13.0.88")
    by_home, by_path = {"CUDA_HOME": str(home)}, {"PATH": f"{home}/bin"}
    for environment in (by_home, by_path):
        assert nvcc_fault("13.2", environment) == ""
        assert nvcc_fault("12.8", environment) == FAULT
        assert nvcc_fault("12.8", {**environment, "DS_SKIP_CUDA_CHECK": "1"}) == ""
        assert nvcc_fault(None, environment) == "", "a torch for ROCm"
    # A runtime without its compiler, and something that is none.
    assert nvcc_fault("13.0", {"CUDA_HOME": str(tmp_path)}) == "there is no nvcc"
    other = fake_nvcc(tmp_path / "other", "hello")
    assert nvcc_fault("13.0", {"CUDA_HOME": str(other), **by_path}) == "there is no nvcc"


def use_growing_segments(monkeypatch: pytest.MonkeyPatch, kind: str) -> str | None:
    monkeypatch.setattr(device, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: kind))
    device.use_growing_segments()
    return os.environ.get("PYTORCH_ALLOC_CONF")


def test_segments_grow_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    assert use_growing_segments(monkeypatch, "cpu") is None
    assert use_growing_segments(monkeypatch, "cuda") == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert use_growing_segments(monkeypatch, "cuda") is None
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:128"


def left_in_the_heap(rank: int, world_size: int, returns: bool) -> int:
    """Bytes still resident after every second of many tensors of 8 MiB has been freed, beyond those that are held."""
    if returns:
        assert device.return_freed_memory()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # One that glibc maps and then frees, so that it takes the next ones of its size from the heap.
    del_first = torch.ones(7 * 2**20)
    del del_first
    before = resident()
    tensors = [torch.ones(2 * 2**20) for _ in range(20)]
    del tensors[::2]
    return resident() - before - sum(tensor.nbytes for tensor in tensors)


def test_freed_tensors_leave_no_gaps() -> None:
    (kept,), (left,) = (run_distributed(left_in_the_heap, 1, returns) for returns in (False, True))
    assert left < 2**20 < 32 * 2**20 < kept, (left, kept)


def recipe(kind: str, *, implementation: str = "auto", offload: str = "none") -> Recipe:
    return Recipe(
        model=Model(path="m"),
        data=Data(train="d"),
        batch=Batch(global_size=2, micro_size=1),
        optimizer=Optimizer(type=kind, implementation=implementation),  # type: ignore[arg-type]
        parallel=Parallel(zero_stage=2, offload_optimizer=offload),  # type: ignore[arg-type]
        steps=2,
    )


@pytest.mark.parametrize(
    ("kind", "implementation", "offload", "target", "said"),
    [
        ("adamw", "deepspeed", "none", Target(2, "cuda", nvcc_fault=FAULT), f"FusedAdam, which is built at first use, and {FAULT}"),
        ("lion", "auto", "none", Target(2, "cuda", nvcc_fault="there is no nvcc"), "FusedLion, which is built at first use, and there is no nvcc"),
        ("adamw", "deepspeed", "none", Target(2, "cuda", compiler=False), "FusedAdam, which is built at first use, and there is no C++"),
        ("adamw", "deepspeed", "cpu", Target(2, "cuda", compiler=False), "DeepSpeedCPUAdam, which is built at first use, and there is no C++"),
        ("lion", "auto", "none", Target(2, "cpu", compiler=False), "DeepSpeedCPULion, which is built at first use, and there is no C++"),
        ("adagrad", "auto", "cpu", Target(2, "cpu", compiler=False), "DeepSpeedCPUAdagrad, which is built at first use, and there is no C++"),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_be_built_is_refused(
    kind: str, implementation: str, offload: str, target: Target, said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        render(recipe(kind, implementation=implementation, offload=offload), target)
    assert caught.value.what.startswith(f"optimizer.type={kind!r} needs {said}")
    assert ("optimizer.implementation='torch'" in caught.value.do) == (kind == "adamw")
    assert ("offload_optimizer='cpu'" in caught.value.do) == bool(target.nvcc_fault)


@pytest.mark.parametrize(
    ("kind", "offload"), [("adamw", "none"), ("adamw", "cpu"), ("lion", "cpu"), ("adagrad", "cpu")]
)
def test_without_nvcc_what_needs_none_is_rendered(kind: str, offload: str) -> None:
    render(recipe(kind, offload=offload), Target(2, "cuda", nvcc_fault=FAULT))


def test_architectures_are_named_as_deepspeed_reads_them() -> None:
    """Letters behind a version stop its builder with a ValueError (op_builder/builder.py)."""
    assert plain_architectures("8.6;9.0a") == "8.6;9.0"
    assert plain_architectures("9.0a+PTX 10.0f 12.0") == "9.0+PTX 10.0 12.0"
