"""Checks of what optimizer offload asks of this host: memory for the states, and leave to pin it."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from toolkit.doctor.check_host import GIB
from toolkit.doctor.finding import Check, Finding
from toolkit.processor import host_memory

STATE_BYTES = 18
"""Of host memory per offloaded parameter: fp32 weight 4, Adam's moments 8, fp32 gradient 4, the 16-bit copy on its way 2."""


def check_offload(parameters: int | None, available: int | None = None) -> Iterator[Finding]:
    """Whether `available` bytes hold the states of `parameters`; without a number nothing is said, as none was asked."""
    if parameters is None:
        return
    check = Check(
        "offload", "all ranks of a host offload into the same memory, and one that is full ends the run without a word"
    )
    available = host_memory()[1] if available is None else available
    needed = STATE_BYTES * parameters
    found = f"the states of {named(parameters)} parameters take {needed / GIB:,.1f} GiB ({STATE_BYTES} bytes each), {available / GIB:,.1f} are available"
    if needed > available:
        fix = "--parallel.zero_stage 3 --parallel.offload_optimizer nvme, or more hosts, which share the states"
        yield check.warn(found, fix)
    else:
        yield check.ok(found)


def check_pinned(
    *, has_gpu: bool, parameters: int | None = None, limit: int | None = None, available: int | None = None
) -> Finding:
    """The limit of memory that may be locked (bytes; -1 for none) against what an offloaded run would pin."""
    check = Check(
        "pinned memory",
        "offload pins its buffers beside a GPU, and what cannot be pinned ends the run, or is copied slowly",
    )
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit is None else limit
    available = host_memory()[1] if available is None else available
    if limit == resource.RLIM_INFINITY:
        return check.ok("unlimited")
    found = f"at most {_size(limit)}"
    if not has_gpu:
        return check.ok(f"{found}; no GPU is here, and only beside one is memory pinned")
    fix = "ulimit -l unlimited; for good: * - memlock unlimited in /etc/security/limits.conf (container: --ulimit memlock=-1)"
    found = f"{found}: the states of {named(limit // STATE_BYTES)} parameters"
    if parameters is not None and STATE_BYTES * parameters > limit:
        return check.warn(f"{found}; those of {named(parameters)} take {_size(STATE_BYTES * parameters)}", fix)
    if parameters is None and limit < available:
        return check.warn(
            f"{found}, where the memory that is available holds those of {named(available // STATE_BYTES)}", fix
        )
    return check.ok(found)


def named(count: int) -> str:
    """`count` in words: 7 billion, 465 million."""
    for unit, word in ((10**9, " billion"), (10**6, " million")):
        if count >= unit:
            return f"{count / unit:.3g}{word}"
    return f"{count:,}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.3g} MiB"
