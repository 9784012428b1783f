"""What this host's processor computes in, read from the kernel. Imports no torch: a dry run asks, too."""

from __future__ import annotations

import os
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


def memory_limit() -> int:
    """Bytes of this host's memory, or of its container's where that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total
