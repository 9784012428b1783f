"""The lock of a kernel's build, which a killed build leaves behind: whoever waits for it takes it over.

torch's own (torch/utils/file_baton.py) is a file that is there as long as somebody builds; those who wait for it look for
nothing else, and wait for ever where the one who builds was killed. It stays open while its owner lives, so one that no
process has open is stale.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from toolkit.engine.kernels import holder
from toolkit.errors import StorageError

LOOKS_EVERY_S = 1.0
"""Between two looks at who has the file open. A living owner closes it and removes it at once: it is not without one twice."""


def use() -> None:
    """Let torch's builds in this process take the locks of dead ones over. Only where all who build are of this host."""
    if Path("/proc").is_dir():
        cpp_extension.FileBaton = BuildLock  # type: ignore[attr-defined]


class BuildLock(FileBaton):
    """torch's lock, for processes of one host."""

    def try_acquire(self) -> bool:
        """Wait until the lock is ours. Who comes second then asks ninja, which has nothing to do (6 ms), and needs no `wait`."""
        lock, without_owner = Path(self.lock_file_path), None
        next_look = time.monotonic() + LOOKS_EVERY_S
        while not super().try_acquire():
            time.sleep(self.wait_seconds)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOKS_EVERY_S
                found = ownerless(lock)
                if found is not None and found == without_owner:
                    remove(lock, found)
                without_owner = found
        return True


def ownerless(lock: Path) -> int | None:
    """The number (inode) of a file of ours that no process has open; None of any other, and where there is none."""
    try:
        status = lock.stat()
        return status.st_ino if status.st_uid == os.geteuid() and holder(lock) is None else None
    except FileNotFoundError:
        return None


def remove(lock: Path, number: int) -> None:
    """Remove `lock` if it is still the file of that number. Raises StorageError where that may not be."""
    try:
        folder = os.open(lock.parent, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        # Or two would find it stale, and the second remove the one that the first has made since.
        fcntl.flock(folder, fcntl.LOCK_EX)
        if lock.stat().st_ino == number:
            lock.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"{lock} was left by a killed build and cannot be removed: {error.strerror}",
            expected="a cache of compiled kernels that this user may write to",
            do=f"rm {lock}, or set TORCH_EXTENSIONS_DIR to another folder",
        ) from None
    finally:
        os.close(folder)
