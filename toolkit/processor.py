"""What this host's processor computes in and how much memory it has, read from the kernel. Imports no torch: a dry run asks, too."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
WITH_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors with matrix products in bf16: x86's two, and ARM's."""

MAPPED = 32 * 2**20
"""Bytes from which on glibc always asks the system for memory, and gives it back when it is freed; it raises its threshold
to there by itself (mallopt(3), M_MMAP_THRESHOLD)."""
RETURNED = 2 * 2**20
"""The same where `toolkit.engine.device.return_freed_memory` has set it."""


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
    return host_memory()[0]


def host_memory() -> tuple[int, int]:
    """Bytes in all and bytes available, within the limit of the container if there is one."""
    memory = meminfo()
    total, available = memory["MemTotal"], memory["MemAvailable"]
    limit, used = _cgroup_bytes("memory.max", "limit_in_bytes"), _cgroup_bytes("memory.current", "usage_in_bytes")
    if limit is not None and limit < total:
        total, available = limit, max(0, min(available, limit - (used or 0)))
    return total, available


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _cgroup_bytes(current_name: str, old_name: str) -> int | None:
    """A number of the container (cgroup 2, then 1) in bytes, or None if there is none."""
    for file in (f"/sys/fs/cgroup/{current_name}", f"/sys/fs/cgroup/memory/memory.{old_name}"):
        try:
            return int(Path(file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
