"""CUDA's parts against each other, on hosts that this one is not: each is described by the facts that a probe would bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.doctor import check_cuda
from toolkit.doctor.check_cuda import CudaFacts
from toolkit.doctor.finding import Finding

H100 = ("NVIDIA H100 80GB HBM3", (9, 0))
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
GOOD = CudaFacts(
    torch="2.13.0+cu130",
    built_for="13.0",
    available=True,
    has_gpu=True,
    driver=13000,
    architectures=ARCHITECTURES,
    devices=(H100, H100),
    nvcc="/usr/local/cuda/bin/nvcc",
    release=(13, 0),
)


def states(facts: CudaFacts) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_cuda.check_cuda(facts)}


def test_a_host_that_is_in_order() -> None:
    assert {name: (one.status, one.found) for name, one in states(GOOD).items()} == {
        "CUDA devices": ("ok", "2 x NVIDIA H100 80GB HBM3; torch 2.13.0+cu130 is built for CUDA 13.0"),
        "driver": ("ok", "supports CUDA 13.0, torch is built for 13.0"),
        "GPU architecture": ("ok", "NVIDIA H100 80GB HBM3 is sm_90, and torch has kernels for it"),
        "nvcc": ("ok", "CUDA 13.0 at /usr/local/cuda/bin/nvcc, torch's is 13.0"),
    }


NONE = replace(GOOD, available=False, devices=(), architectures=())


@pytest.mark.parametrize(
    ("facts", "found", "fix"),
    [
        (replace(NONE, built_for=None, torch="2.13.0+cpu"), "there is a GPU, but torch 2.13.0+cpu is a CPU build", "pip install --force-reinstall torch from an index with CUDA builds"),
        (replace(NONE, visible=""), "hidden by CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES"),
        (replace(NONE, visible="-1"), "hidden by CUDA_VISIBLE_DEVICES='-1'", "unset CUDA_VISIBLE_DEVICES"),
        (replace(NONE, driver=None), "there is a GPU, but no driver answers (libcuda.so.1)", "install or load the driver"),
        (NONE, "torch cannot use the GPU", "python -c 'import torch; torch.cuda.init()'"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_does_not_see(facts: CudaFacts, found: str, fix: str) -> None:
    finding = states(facts)["CUDA devices"]
    assert (finding.status, finding.found) == ("warn", found)
    assert finding.fix.startswith(fix) and "takes the CPU where torch sees no GPU" in finding.why


def test_a_host_without_a_gpu_is_told_nothing_more() -> None:
    found = states(CudaFacts("2.13.0+cpu", None, available=False, has_gpu=False, driver=None))
    assert {name: one.found for name, one in found.items()} == {"CUDA devices": "none; runs use the CPU"}


@pytest.mark.parametrize(
    ("driver", "built_for", "status"),
    [
        (12080, "12.8", "ok"),
        (13000, "12.8", "ok"),
        (12040, "12.8", "warn"),
        (12080, "13.0", "fail"),
        (None, "13.0", "ok"),
        (12080, None, "ok"),
    ],
)
def test_the_driver_against_torch(driver: int | None, built_for: str | None, status: str) -> None:
    finding = check_cuda.check_driver(driver, built_for)
    assert finding.status == status
    if status == "fail":
        assert finding.found == "supports CUDA 12.8, torch is built for 13.0"
        assert "update the driver to one that supports CUDA 13.0" in finding.fix
        assert "install a torch for CUDA 12" in finding.fix


@pytest.mark.parametrize(
    ("capability", "architectures", "status"),
    [
        ((9, 0), ARCHITECTURES, "ok"),
        ((8, 9), ARCHITECTURES, "ok"),  # code for 8.6 runs on 8.9
        ((12, 1), ARCHITECTURES, "ok"),
        ((7, 0), ARCHITECTURES, "fail"),  # Volta, which builds for CUDA 13 have no kernels for
        ((13, 0), ARCHITECTURES, "warn"),  # compute_120 can be translated
        ((13, 0), ("sm_80", "sm_90"), "fail"),
        ((9, 0), ("sm_90a",), "ok"),
        ((10, 3), ("sm_100a",), "fail"),
        ((10, 3), ("sm_100f",), "ok"),
        ((8, 0), ("sm_86",), "fail"),  # a later member's code does not run on an earlier one
        ((9, 0), (), "ok"),
        ((9, 0), ("gfx942",), "fail"),
    ],
)
def test_the_gpu_against_torchs_kernels(
    capability: tuple[int, int], architectures: tuple[str, ...], status: str
) -> None:
    finding = check_cuda.check_architecture("a card", capability, architectures)
    assert finding.status == status, finding
    assert finding.found.startswith(f"a card is sm_{capability[0]}{capability[1]}")
    assert "no kernel image is available" in finding.why


def test_what_to_do_about_kernels_that_are_missing() -> None:
    old, new = (check_cuda.check_architecture("a card", one, ("sm_80", "sm_90")) for one in ((7, 0), (13, 0)))
    assert old.fix == "install an older torch, or one for an older CUDA (pytorch.org/get-started)"
    assert new.fix == "pip install --upgrade torch"
    assert new.found == "a card is sm_130, torch has kernels for sm_80, sm_90"


@pytest.mark.parametrize(
    ("change", "status", "found", "fix"),
    [
        ({"release": None}, "warn", "there is no nvcc (/usr/local/cuda/bin/nvcc): DeepSpeed's GPU kernels cannot be built", "install the CUDA toolkit 13.0, and export CUDA_HOME=its folder"),
        ({"release": (12, 4), "nvcc": "/opt/cuda/bin/nvcc"}, "warn", "nvcc is of CUDA 12.4, torch of CUDA 13.0 (/opt/cuda/bin/nvcc): DeepSpeed's GPU kernels cannot be built", "install the CUDA toolkit 13.0, and export CUDA_HOME=its folder"),
        ({"release": (12, 4), "toolkits": {"/usr/local/cuda-12.4": (12, 4), "/usr/local/cuda-13.0": (13, 0)}}, "warn", "nvcc is of CUDA 12.4, torch of CUDA 13.0 (/usr/local/cuda/bin/nvcc): DeepSpeed's GPU kernels cannot be built", "export CUDA_HOME=/usr/local/cuda-13.0"),
        ({"release": (13, 2)}, "ok", "CUDA 13.2 at /usr/local/cuda/bin/nvcc, torch's is 13.0, which the same major version allows", ""),
    ],
)  # fmt: skip
def test_nvcc_against_torch(change: dict[str, object], status: str, found: str, fix: str) -> None:
    finding = check_cuda.check_nvcc(replace(GOOD, **change))  # type: ignore[arg-type]
    assert (finding.status, finding.found, finding.fix) == (status, found, fix)


def test_the_probe_asks_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    facts = check_cuda.probe()
    assert (facts.torch, facts.nvcc) == (torch.__version__, "/nowhere/bin/nvcc")
    assert facts.available == torch.cuda.is_available() and bool(facts.devices) == facts.available
    assert states(facts)["CUDA devices"].status == "ok" or facts.has_gpu


def test_toolkits_are_asked_for_their_version(tmp_path: Path) -> None:
    for name, text in (("cuda-12.4", "echo 'Cuda compilation tools, release 12.4, V12.4.131'"), ("cuda-9", "exit 1")):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "nvcc").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name / "bin" / "nvcc").chmod(0o755)
    assert check_cuda._toolkits(tmp_path) == {str(tmp_path / "cuda-12.4"): (12, 4)}
