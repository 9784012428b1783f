"""What devices can compute at most, by the name that torch gives them: the denominator of MFU.

Dense rates in TFLOPS with fp32 accumulation, from NVIDIA's and AMD's data sheets and architecture white papers, which often print
twice the rate, for 2:4 sparse matrices; that is halved here. A device that is not listed has no MFU: better none than
one of another card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

NumberFormat = Literal["fp8", "bf16", "fp16", "tf32", "fp32"]
"""What matrix products multiply in."""


@dataclass(frozen=True)
class Peak:
    """Dense TFLOPS of one device in each number format; None where it has no such units."""

    name: str
    """Words that its name has, in lower case."""
    fp8: float | None
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float
    """Outside the tensor cores."""
    source: str

    def tflops(self, number_format: NumberFormat) -> float | None:
        """Peak in `number_format`."""
        found: float | None = getattr(self, number_format)
        return found


def _tensor(
    name: str, half: float, tf32: float | None, fp32: float, source: str, *, fp8: bool = False, has_bf16: bool = True
) -> Peak:
    """A device whose bf16 is as fast as its fp16, and whose fp8, where it has that, is twice as fast."""
    return Peak(name, 2 * half if fp8 else None, half if has_bf16 else None, half, tf32, fp32, source)


_H100 = "H100 data sheet"
_AMPERE = "NVIDIA Ampere GA102 white paper, appendix A"
_ADA = "NVIDIA Ada white paper, appendix A"

PEAKS: tuple[Peak, ...] = (
    _tensor("gb200", 2500.0, 1250.0, 80.0, "GB200 NVL72 data sheet", fp8=True),
    _tensor("b200", 2250.0, 1125.0, 75.0, "DGX B200 data sheet", fp8=True),
    _tensor("gh200", 989.5, 494.5, 67.0, "GH200 data sheet", fp8=True),
    _tensor("h200 nvl", 835.5, 417.5, 60.0, "H200 data sheet", fp8=True),
    _tensor("h200", 989.5, 494.5, 67.0, "H200 data sheet", fp8=True),
    _tensor("h100 nvl", 835.5, 417.5, 60.0, _H100, fp8=True),
    _tensor("h100 pcie", 756.5, 378.0, 51.0, _H100, fp8=True),
    _tensor("h100", 989.5, 494.5, 67.0, _H100, fp8=True),
    _tensor("h800 pcie", 756.5, 378.0, 51.0, "H800 data sheet", fp8=True),
    _tensor("h800", 989.5, 494.5, 67.0, "H800 data sheet", fp8=True),
    _tensor("h20", 148.0, 74.0, 44.0, "H20 data sheet", fp8=True),
    _tensor("mi325x", 1307.4, 653.7, 163.4, "AMD Instinct MI325X data sheet", fp8=True),
    _tensor("mi300x", 1307.4, 653.7, 163.4, "AMD Instinct MI300X data sheet", fp8=True),
    _tensor("a100", 312.0, 156.0, 19.5, "A100 data sheet"),
    _tensor("a800", 312.0, 156.0, 19.5, "A800 data sheet"),
    _tensor("a30", 165.0, 82.0, 10.3, "A30 data sheet"),
    _tensor("a40", 149.7, 74.8, 37.4, "A40 data sheet"),
    _tensor("a10", 125.0, 62.5, 31.2, "A10 data sheet"),
    _tensor("a10g", 70.0, 35.0, 31.5, "A10G data sheet"),
    _tensor("l40s", 362.05, 183.0, 91.6, "L40S data sheet", fp8=True),
    _tensor("l40", 181.05, 90.5, 90.5, "L40 data sheet", fp8=True),
    _tensor("l4", 121.0, 60.0, 30.3, "L4 data sheet", fp8=True),
    _tensor("rtx 6000 ada", 364.2, 182.1, 91.1, "NVIDIA Ada professional white paper", fp8=True),
    _tensor("rtx a6000", 154.8, 77.4, 38.7, _AMPERE),
    # GeForce: half the rate of the same chip where sums are kept in fp32, as torch keeps them.
    _tensor("rtx 5090", 209.5, 104.8, 104.8, "NVIDIA RTX Blackwell white paper, appendix A", fp8=True),
    _tensor("rtx 4090", 165.2, 82.6, 82.6, _ADA, fp8=True),
    _tensor("rtx 3090 ti", 80.0, 40.0, 40.0, _AMPERE),
    _tensor("rtx 3090", 71.0, 35.6, 35.6, _AMPERE),
    _tensor("v100s", 130.0, None, 16.4, "V100 data sheet", has_bf16=False),
    _tensor("v100 pcie", 112.0, None, 14.0, "V100 data sheet", has_bf16=False),
    _tensor("v100", 125.0, None, 15.7, "V100 data sheet", has_bf16=False),
    _tensor("t4", 65.0, None, 8.1, "T4 data sheet", has_bf16=False),
)
"""The first row whose words are all in a device's name is its own."""

OTHERS = frozenset({"laptop", "mobile", "max", "mig", "d", "ti", "super"})
"""Words that make another device of a name: a notebook's, a part of one, a cut-down or a larger one."""


def find_peak(device_name: str) -> Peak | None:
    """The row of torch.cuda.get_device_name's `device_name`; None where there is none."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    for peak in PEAKS:
        wanted = set(peak.name.split())
        if wanted <= words and not (words - wanted) & OTHERS:
            return peak
    return None
