"""Device names, as torch and nvidia-smi write them, and the row that is theirs."""

from __future__ import annotations

import pytest

from toolkit.plan.peaks import PEAKS, find_peak


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 3090", 71.0),
        ("NVIDIA GeForce RTX 3090 Ti", 80.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("Tesla V100-SXM2-32GB", None),
        ("Tesla T4", None),
    ],
)
def test_a_device_has_its_own_row(name: str, bf16: float | None) -> None:
    peak = find_peak(name)
    assert peak is not None and peak.tflops("bf16") == bf16


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "Quadro RTX 6000",
        "NVIDIA GeForce GTX 1080",
        "",
    ],
)
def test_another_device_has_no_row(name: str) -> None:
    assert find_peak(name) is None


def test_rates_of_a_device_fit_together() -> None:
    for peak in PEAKS:
        assert peak.fp16 > peak.fp32 and peak.source
        assert peak.bf16 in (None, peak.fp16)
        assert peak.fp8 in (None, 2 * peak.fp16)
        assert peak.tf32 is None or peak.fp32 <= peak.tf32 <= peak.fp16 / 2 * 1.02
    names = [peak.name for peak in PEAKS]
    assert len(set(names)) == len(names)
    tesla = find_peak("Tesla V100-PCIE-16GB")
    assert tesla is not None and (tesla.tflops("fp16"), tesla.tflops("tf32")) == (112.0, None)
