"""What this host's processor computes in, read from the kernel. Imports no torch: a dry run asks, too."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
WITH_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors with matrix products in bf16: x86's two, and ARM's."""


def multiplies_bf16() -> bool:
    """Whether it has instructions for bf16. Every CPU computes in bf16 after a fashion; without them it is slower than fp32."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # x86 writes "flags", ARM "Features"; every core repeats them, and the first speaks for all.
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((words.split() for name, _, words in lines if name.strip() in ("flags", "Features")), [])
    return not WITH_BF16.isdisjoint(flags)
