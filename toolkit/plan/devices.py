"""What plans know of devices: memory, rates, links and power, by the name a user gives; and of this host's processor."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial

from toolkit.errors import InputError, did_you_mean
from toolkit.plan.peaks import NumberFormat, Peak, find_peak
from toolkit.processor import memory_limit

GIB = 2**30
GB = 1e9

ASSUMED = "assumed"
"""Source of rates that nobody has measured."""


@dataclass(frozen=True)
class Hardware:
    """One device of a kind, and what joins it to others."""

    name: str
    memory: int
    """Bytes that a program can use."""
    bandwidth: float
    """Bytes per second of its memory."""
    link: float
    """Bytes per second in one direction between two devices of a host."""
    host_link: float
    """Bytes per second in one direction between the device and host memory."""
    watts: float
    """Board power."""
    source: str
    peak: Peak | None = None
    """Rates of its matrix units; None: `rate` is what is known."""
    rates: tuple[float, float] = (0.0, 0.0)
    """FLOPs per second in fp32 and in bf16, of a device that is measured and not listed."""
    cores: int = 0
    """Of a processor."""
    fabric: float = 50 * GB
    """Bytes per second in one direction and per device between hosts: 400 Gbit/s each, unless told otherwise."""

    @property
    def is_cpu(self) -> bool:
        """Whether it is a host's processor, whose memory is the host's."""
        return self.name == "cpu"

    @property
    def is_assumed(self) -> bool:
        """Whether its rates are a guess, until runs have finished on it."""
        return self.source == ASSUMED

    def flops(self, number_format: NumberFormat) -> float:
        """Peak FLOPs per second in `number_format`."""
        if self.peak is None:
            return self.rates[number_format != "fp32"]
        found = self.peak.tflops(number_format)
        return (found if found is not None else self.peak.fp32) * 1e12


def _listed(
    name: str, gib: float, bandwidth: float, link: float, host_link: float, watts: float, source: str
) -> Hardware:
    peak = find_peak(name.replace("-", " "))
    assert peak is not None, name
    return Hardware(name, int(gib * GIB), bandwidth * GB, link * GB, host_link * GB, watts, source, peak)


_PCIE3, _PCIE4, _PCIE5 = 12.0, 25.0, 50.0
"""GB/s that large copies reach over sixteen lanes, of 16, 32 and 64."""

DEVICES: dict[str, Hardware] = {
    device.name: device
    for device in (
        _listed("gb200", 184.0, 8000.0, 900.0, 450.0, 1200.0, "GB200 NVL72 data sheet"),
        _listed("b200", 178.3, 8000.0, 900.0, _PCIE5, 1000.0, "DGX B200 data sheet"),
        _listed("gh200", 94.5, 4000.0, 450.0, 450.0, 700.0, "GH200 data sheet (96 GB)"),
        _listed("h200-nvl", 139.8, 4800.0, 450.0, _PCIE5, 600.0, "H200 data sheet (NVL)"),
        _listed("h200", 139.8, 4800.0, 450.0, _PCIE5, 700.0, "H200 data sheet"),
        _listed("h100-nvl", 93.1, 3938.0, 300.0, _PCIE5, 400.0, "H100 data sheet (NVL)"),
        _listed("h100-pcie", 79.2, 2000.0, 50.0, _PCIE5, 350.0, "H100 data sheet (PCIe)"),
        _listed("h100", 79.1, 3350.0, 450.0, _PCIE5, 700.0, "H100 data sheet (SXM)"),
        _listed("h800-pcie", 79.2, 2000.0, 50.0, _PCIE5, 350.0, "H800 data sheet (PCIe)"),
        _listed("h800", 79.1, 3350.0, 200.0, _PCIE5, 700.0, "H800 data sheet (SXM)"),
        _listed("h20", 95.1, 4000.0, 450.0, _PCIE5, 400.0, "H20 data sheet"),
        _listed("mi325x", 255.9, 6000.0, 448.0, _PCIE5, 1000.0, "AMD Instinct MI325X data sheet"),
        _listed("mi300x", 191.5, 5300.0, 448.0, _PCIE5, 750.0, "AMD Instinct MI300X data sheet"),
        _listed("a100", 79.2, 2039.0, 300.0, _PCIE4, 400.0, "A100 data sheet (SXM, 80 GB)"),
        _listed("a800", 79.2, 2039.0, 200.0, _PCIE4, 400.0, "A800 data sheet (SXM, 80 GB)"),
        _listed("a30", 23.5, 933.0, 100.0, _PCIE4, 165.0, "A30 data sheet"),
        _listed("a40", 44.4, 696.0, 56.0, _PCIE4, 300.0, "A40 data sheet"),
        _listed("a10", 22.0, 600.0, _PCIE4, _PCIE4, 150.0, "A10 data sheet"),
        _listed("a10g", 22.0, 600.0, _PCIE4, _PCIE4, 300.0, "A10G data sheet"),
        _listed("l40s", 44.4, 864.0, _PCIE4, _PCIE4, 350.0, "L40S data sheet"),
        _listed("l40", 44.4, 864.0, _PCIE4, _PCIE4, 300.0, "L40 data sheet"),
        _listed("l4", 22.0, 300.0, _PCIE4, _PCIE4, 72.0, "L4 data sheet"),
        _listed("rtx-6000-ada", 47.5, 960.0, _PCIE4, _PCIE4, 300.0, "RTX 6000 Ada data sheet"),
        _listed("rtx-a6000", 47.5, 768.0, _PCIE4, _PCIE4, 300.0, "RTX A6000 data sheet"),
        _listed("rtx-5090", 31.4, 1792.0, _PCIE5, _PCIE5, 575.0, "NVIDIA RTX Blackwell white paper, appendix A"),
        _listed("rtx-4090", 23.5, 1008.0, _PCIE4, _PCIE4, 450.0, "NVIDIA Ada white paper, appendix A"),
        _listed("rtx-3090-ti", 23.6, 1008.0, _PCIE4, _PCIE4, 450.0, "NVIDIA Ampere GA102 white paper"),
        _listed("rtx-3090", 23.6, 936.0, _PCIE4, _PCIE4, 350.0, "NVIDIA Ampere GA102 white paper"),
        _listed("v100s", 31.7, 1134.0, _PCIE3, _PCIE3, 250.0, "V100 data sheet (V100S PCIe, 32 GB)"),
        _listed("v100-pcie", 31.7, 900.0, _PCIE3, _PCIE3, 250.0, "V100 data sheet (PCIe, 32 GB)"),
        _listed("v100", 31.7, 900.0, 150.0, _PCIE3, 300.0, "V100 data sheet (SXM2, 32 GB)"),
        _listed("t4", 14.6, 320.0, _PCIE3, _PCIE3, 70.0, "T4 data sheet"),
    )
}
DEVICES["a100-40"] = replace(
    DEVICES["a100"], name="a100-40", memory=int(39.4 * GIB), bandwidth=1555 * GB, source="A100 data sheet (40 GB)"
)

EFFICIENCY, REACHED_BANDWIDTH = 0.55, 0.60
"""Of a GPU's listed rate what matrix products of training reach, and of its bandwidth what other operations do.

Steps of 1 to 3 billion parameters on an H200 take what they say (benchmarks/results/gpu_nvidia_h200.md): with fused kernels
40% of the listed rate over a whole step; llm-foundry's public table has 42 to 46% on H100s.
"""

GLOO = 1.2 * GB
"""What processes of a host send each other through gloo in all-reduces (measured by benchmarks/collectives.py)."""

LAUNCH_S = 25e-6
"""Seconds that a host takes to start an operation on a GPU, with the Python around it: below it a device waits. On the slow
host of benchmarks/results/gpu_nvidia_h200.md it is two to three times as long."""


def find_device(name: str) -> Hardware:
    """The device that a user names. Raises InputError for one that is not listed."""
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    wanted = wanted.removeprefix("nvidia-").removeprefix("amd-").removeprefix("geforce-")
    if wanted in ("4090", "5090", "3090"):
        wanted = f"rtx-{wanted}"
    wanted = {"a100-80": "a100", "a100-80gb": "a100", "a100-40gb": "a100-40", "h100-80gb": "h100"}.get(wanted, wanted)
    if wanted == "cpu":
        return this_processor()
    if wanted not in DEVICES:
        raise InputError(
            f"--device {name}: not a device with known memory and rates{did_you_mean(wanted, [*DEVICES, 'cpu'])}",
            expected=f"cpu, or one of {', '.join(sorted(DEVICES))}",
            do="name one of them that is like yours, and its memory with --device-memory-gib",
        )
    return DEVICES[wanted]


def gpu_named(name: str, memory: int) -> Hardware:
    """The GPU that torch calls `name`, with `memory` bytes; of one that is not listed the rates are assumed."""
    peak = find_peak(name)
    known = [device for device in DEVICES.values() if peak is not None and device.peak == peak]
    if known:
        return replace(min(known, key=lambda device: abs(device.memory - memory)), memory=memory)
    return Hardware(name.lower(), memory, 500 * GB, _PCIE4 * GB, _PCIE4 * GB, 0.0, ASSUMED, rates=(20e12, 80e12))


def any_processor() -> Hardware:
    """This host's processor with rates that are no measurement: every rank finds the same ones, and so the same strategy."""
    return Hardware("cpu", memory_limit(), 20 * GB, GLOO, 20 * GB, 0.0, ASSUMED, rates=(1e11, 1e11), cores=_cores())


def this_processor() -> Hardware:
    """This host's processor, as all of its cores multiply matrices and move memory now: measured in a tenth of a second."""
    import torch

    # A rank computes with its share of the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(_cores())
    try:
        return _measured()
    finally:
        torch.set_num_threads(threads)


def _measured() -> Hardware:
    import torch

    def seconds(work: object) -> float:
        best = float("inf")
        for _ in range(4):
            begin = time.perf_counter()
            work()  # type: ignore[operator]
            best = min(best, time.perf_counter() - begin)
        return best

    size, numbers = 768, 24_000_000
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))
        rates.append(2.0 * size**3 / seconds(partial(torch.mm, left, right)))
    source, target = torch.ones(numbers), torch.ones(numbers)
    bandwidth = 12.0 * numbers / seconds(lambda: torch.add(source, target, out=target))
    return replace(
        any_processor(), bandwidth=bandwidth, host_link=bandwidth, source="measured here", rates=(rates[0], rates[1])
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
