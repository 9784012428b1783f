"""`toolkit doctor --nvme DIR`: would offload to this folder be fast, and does it fit?"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor.check_host import GIB
from toolkit.doctor.check_offload import named
from toolkit.doctor.disk_speed import BLOCK, LARGEST, Disk, Speed, disk_of, measure
from toolkit.doctor.finding import Check, Finding
from toolkit.errors import LaunchError

NVME_BYTES = 12
"""On the disk per parameter: fp32 weight 4 and Adam's moments 8. A step reads and writes all of them."""
USUAL = 10**9
"""Parameters that the report speaks of where no number is given."""
SLOW = 10**9
"""Bytes per second. Any NVMe disk writes more; a SATA disk has half."""


def check_nvme(folder: Path, parameters: int | None = None) -> Iterator[Finding]:
    """The disk of `folder`, its room and its speed, for `parameters`. Raises LaunchError where it is no folder to write in."""
    what = _unusable(folder)
    if what:
        raise LaunchError(
            f"--nvme {folder}: it {what}",
            expected="a folder on a local disk, as parallel.nvme_path names it",
            do=f"mkdir -p {shlex.quote(str(folder))}, or name another folder",
        )
    yield check_kind(folder, disk_of(folder))
    free = shutil.disk_usage(folder).free
    yield check_room(folder, free, parameters)
    yield _check_measured(folder, min(LARGEST, free // 2), parameters)


def _unusable(folder: Path) -> str:
    """Why nothing can be written into `folder`, or nothing."""
    if not folder.is_dir():
        return "is no folder" if folder.exists() else "does not exist"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    return "" if shutil.disk_usage(folder).total else "lies on no disk"


def check_kind(folder: Path, disk: Disk) -> Finding:
    """Whether `folder` lies on a disk of this host that has no moving parts."""
    check = Check("NVMe disk", "offload reads and writes all optimizer states at every step, and waits for them")
    found = f"{folder} is on {disk.file_system or 'an unknown file system'}" + (
        f" ({disk.device})" if disk.device else ""
    )
    fix = "set parallel.nvme_path to a folder on a local NVMe disk: lsblk -d -o NAME,ROTA,SIZE,MODEL lists them"
    if disk.kind == "memory":
        return check.fail(f"{found}, which is memory: the states would take there what offload is to save", fix)
    if disk.kind == "network":
        return check.warn(f"{found}, which lies behind a network, and is shared with others", fix)
    # Virtual disks of any kind are said to rotate: the measured speed decides.
    return check.ok(found + (", which the kernel takes for one that rotates" if disk.kind == "rotational" else ""))


def check_room(folder: Path, free: int, parameters: int | None) -> Finding:
    """Whether `free` bytes hold the states of `parameters`."""
    check = Check("NVMe room", "a disk that fills up during a step ends the run")
    found = (
        f"{free / GIB:,.1f} GiB free: the states of {named(free // NVME_BYTES)} parameters ({NVME_BYTES} bytes each)"
    )
    if parameters is not None and NVME_BYTES * parameters > free:
        needed = NVME_BYTES * parameters / GIB
        fix = f"free {needed - free / GIB:,.0f} GiB: du -xh {shlex.quote(str(folder))} | sort -h | tail"
        return check.fail(f"{found}; those of {named(parameters)} take {needed:,.1f} GiB", fix)
    if free < GIB:
        return check.warn(found, f"free some: du -xh {shlex.quote(str(folder))} | sort -h | tail")
    return check.ok(found)


def _check_measured(folder: Path, largest: int, parameters: int | None) -> Finding:
    check = Check("NVMe speed", "so long the device waits at every step, as far as nothing overlaps")
    try:
        if largest < BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return check_speed(check, measure(folder, largest), parameters)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = (
            f"free some: df -h {shlex.quote(str(folder))}; quota -s"
            if full
            else "see what the kernel says of the disk: dmesg | tail"
        )
        return check.fail(f"{folder} cannot be measured: {error.strerror}", fix)


def check_speed(check: Check, speed: Speed, parameters: int | None) -> Finding:
    """What a measured `speed` means for a step that reads and writes the states of `parameters`."""
    count = parameters or USUAL
    seconds = NVME_BYTES * count * (1 / speed.read + 1 / speed.write)
    found = (
        f"writes {speed.write / 1e9:.2f} GB/s, reads {speed.read / 1e9:.2f}"
        + ("" if speed.direct else " (through the kernel's cache, so that reading may be slower than this)")
        + f": {seconds:,.1f} s a step for the states of {named(count)} parameters on this disk"
    )
    if min(speed.write, speed.read) < SLOW:
        fix = "set parallel.nvme_path to a folder on a faster disk, or --parallel.offload_optimizer cpu"
        return check.warn(found, fix)
    return check.ok(found)
