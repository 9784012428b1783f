"""How fast a folder is written and read, past the cache of the kernel, and what kind of disk it lies on."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BLOCK = 2**20
"""Bytes of a request; DeepSpeed's own default (aio.block_size)."""
AT_A_TIME = 8
"""Requests under way; DeepSpeed's own default (aio.queue_depth)."""
LARGEST = 2**28
BUDGET_S = 0.8
"""Seconds of writing, and again of reading."""
NETWORK_FILE_SYSTEMS = (
    *("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "gpfs", "9p", "virtiofs", "afs", "orangefs", "pvfs"),
    *(
        "wekafs",
        "panfs",
        "ocfs2",
        "fuse.sshfs",
        "fuse.gcsfuse",
        "fuse.s3fs",
        "fuse.goofys",
        "fuse.juicefs",
        "fuse.ceph",
    ),
)
"""How the types begin that lie behind a network."""


@dataclass(frozen=True)
class Disk:
    """What /proc and /sys say of a folder's file system."""

    file_system: str
    """Its type; empty where unknown."""
    device: str
    kind: Literal["memory", "network", "rotational", "disk", "unknown"]


@dataclass(frozen=True)
class Speed:
    """Bytes per second."""

    write: float
    read: float
    direct: bool
    """Whether the kernel's cache was left out; else it was emptied before reading, as far as the file system does that."""


def disk_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo"), devices: Path = Path("/sys/dev/block")) -> Disk:
    """The disk on which `folder` lies."""
    place = folder.resolve()
    best, found = -1, Disk("", "", "unknown")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        number, point = left.split()[2], Path(_unescaped(left.split()[4]))
        # The last of several mounts on one folder hides the others.
        if place.is_relative_to(point) and len(point.parts) >= best:
            kind, device = right.split()[:2]
            best, found = len(point.parts), Disk(kind, device, _kind(kind, devices / number))
    return found


def _unescaped(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text


def _kind(file_system: str, device: Path) -> Literal["memory", "network", "rotational", "disk", "unknown"]:
    if file_system in ("tmpfs", "ramfs", "devtmpfs"):
        return "memory"
    if file_system.startswith(NETWORK_FILE_SYSTEMS):
        return "network"
    for queue in (device / "queue", device.resolve().parent / "queue"):  # of a disk, of a partition
        with contextlib.suppress(OSError):
            return "rotational" if (queue / "rotational").read_text(encoding="ascii").strip() == "1" else "disk"
    return "unknown"


def measure(folder: Path, largest: int = LARGEST, budget_s: float = BUDGET_S) -> Speed:
    """Write at most `largest` bytes into `folder` and read them, each for about `budget_s`. Raises OSError.

    The file has no name while it is used, so that it is gone however this process ends.
    """
    with _nameless(folder) as (descriptor, direct):
        written, write_s = _run(_writer(descriptor), largest, budget_s)
        os.fsync(descriptor)
        if not direct:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        read, read_s = _run(_reader(descriptor), written, budget_s)
    return Speed(written / write_s, read / read_s, direct)


@contextlib.contextmanager
def _nameless(folder: Path) -> Iterator[tuple[int, bool]]:
    """A file without a name in `folder`, and whether it passes by the kernel's cache."""
    for direct in (True, False):
        # Without O_DIRECT each write waits for the disk: the time is the disk's all the same, and the budget holds.
        flags = os.O_RDWR | (os.O_DIRECT if direct else os.O_DSYNC)
        try:
            descriptor = _open(folder, flags)
        except OSError as error:
            if direct and error.errno == errno.EINVAL:
                continue
            raise
        try:
            if direct and not _takes_blocks(descriptor):
                continue
            yield descriptor, direct
            return
        finally:
            os.close(descriptor)


def _open(folder: Path, flags: int) -> int:
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    # A file system that knows no files without a name: this one has its name for a moment.
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".toolkit-speed-")
    try:
        return os.open(name, flags)
    finally:
        Path(name).unlink()
        os.close(descriptor)


def _takes_blocks(descriptor: int) -> bool:
    """Some file systems open a file with O_DIRECT and refuse the first write."""
    try:
        with mmap.mmap(-1, BLOCK) as block:
            os.pwrite(descriptor, block, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _writer(descriptor: int) -> Callable[[int], int]:
    # Memory of its own pages is aligned as O_DIRECT asks; random, so that no file system compresses it.
    block = mmap.mmap(-1, BLOCK)
    block.write(os.urandom(BLOCK))

    def write(offset: int) -> int:
        done = os.pwrite(descriptor, block, offset)
        if done < BLOCK:  # the kernel writes what fits and refuses the next request
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done

    return write


def _reader(descriptor: int) -> Callable[[int], int]:
    blocks = [mmap.mmap(-1, BLOCK) for _ in range(AT_A_TIME)]

    def read(offset: int) -> int:
        return os.preadv(descriptor, [blocks[offset // BLOCK % AT_A_TIME]], offset)

    return read


def _run(request: Callable[[int], int], num_bytes: int, budget_s: float) -> tuple[int, float]:
    """Requests, AT_A_TIME of them together, until `num_bytes` are through or the time is up: bytes and seconds."""
    done, began = 0, time.perf_counter()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for start in range(0, num_bytes, BLOCK * AT_A_TIME):
            offsets = range(start, min(start + BLOCK * AT_A_TIME, num_bytes), BLOCK)
            done += sum(pool.map(request, offsets))
            if time.perf_counter() - began > budget_s:
                break
    return done, max(time.perf_counter() - began, 1e-9)
