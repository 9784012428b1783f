"""One run at a time in a folder.

Rank 0 holds a lock on the file .lock in it, which the operating system takes back when the process dies, however it
dies. Where the file system has no locks, `beat_lock` takes its place. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from toolkit.train.beat_lock import BeatLock
from toolkit.train.lock_holder import LOCK, describe_me, in_use

TRIES, PAUSE_S = 10, 0.1
"""A start that only looks holds the lock for an instant, too."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
TAKEN = (BlockingIOError, PermissionError)
"""What a lock that another has raises: SMB says that access is denied."""

_held: set[int] = set()


def _forget() -> None:
    # A lock belongs to every process that has the open file: a worker that outlives its parent must not keep it.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


class RunLock:
    """The right to write into `folder`. `take` raises LaunchError while another process has it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor = -1
        self._beats: BeatLock | None = None

    def take(self) -> None:
        """Hold the folder until `release`, or the end of this process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._lock():
            self._write()
            return
        beats = BeatLock(self.path)
        beats.take()
        self._beats = beats

    def _lock(self) -> bool:
        """Lock the file; False where the file system has no locks."""
        for _ in range(TRIES):
            descriptor, is_new = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_the_file(descriptor, self.path):
                    self._descriptor = descriptor
                    _held.add(descriptor)
                    return True
                # The holder before has just removed it.
            except TAKEN:
                time.sleep(PAUSE_S)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                if is_new:  # or it would look like another's
                    self.path.unlink(missing_ok=True)
                return False
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
        raise in_use(self.path)

    def _open(self) -> tuple[int, bool]:
        """A descriptor of the file, and whether it was made for it."""
        with contextlib.suppress(FileExistsError):
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), False

    def release(self) -> None:
        """Let go; the file goes as well. Nothing to do where nothing is held."""
        if self._beats is not None:
            self._beats.release()
            self._beats = None
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self) -> None:
        # Through the descriptor that holds the lock: on SMB no other may write. The text serves messages only.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, describe_me().encode(), 0)


def check_free(folder: Path) -> None:
    """Raise LaunchError when a run is in progress in `folder`. Writes nothing; where there are no locks, `take` decides."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except TAKEN:
        raise in_use(folder / LOCK) from None
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
