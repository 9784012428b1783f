"""One run at a time in a folder.

Rank 0 holds a lock on the file .lock in it, which the operating system takes back when the process dies, however it
dies. Where the file system has no locks, the file's holder changes it every few seconds instead, and a start that finds
the file watches whether it does. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from toolkit.errors import LaunchError

LOCK = ".lock"
TRIES, PAUSE_S = 10, 0.1
"""A start that only looks holds the lock for an instant, too."""
BEAT_S = 5.0
WATCH_BEATS = 4
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

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
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self) -> None:
        """Hold the folder until `release`, or the end of this process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._lock():
            self._write(0)
            return
        self._wait_for_silence()
        self._write(0)
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def _lock(self) -> bool:
        """Lock the file; False where the file system has no locks."""
        for _ in range(TRIES):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_the_file(descriptor, self.path):
                    self._descriptor = descriptor
                    _held.add(descriptor)
                    return True
                # The holder before has just removed it.
            except BlockingIOError:
                time.sleep(PAUSE_S)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                return False
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
        raise in_use(self.path)

    def release(self) -> None:
        """Let go; the file goes as well. Nothing to do where nothing is held."""
        if self._descriptor < 0 and self._beating is None:
            return
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
        self.path.unlink(missing_ok=True)
        if self._descriptor >= 0:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, beat: int) -> None:
        # In place: the lock is on this very file.
        with self.path.open("r+" if self.path.exists() else "w", encoding="utf-8") as file:
            began = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(psutil.Process().create_time()))
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "began": began, "beat": beat}, file)
            file.truncate()

    def _wait_for_silence(self) -> None:
        """Return when nobody has the folder, on a file system without locks. Raises LaunchError when somebody has."""
        before = holder(self.path)
        if not before:
            return
        if before.get("host") == socket.gethostname():
            if psutil.pid_exists(int(before["pid"])):
                raise in_use(self.path)
            return
        for _ in range(WATCH_BEATS):
            time.sleep(BEAT_S)
            if holder(self.path) != before:
                raise in_use(self.path)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):
                self._write(beat)


def check_free(folder: Path) -> None:
    """Raise LaunchError when a run is in progress in `folder`. Writes nothing; where there are no locks, `take` decides."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise in_use(folder / LOCK) from None
    except OSError:
        pass
    finally:
        os.close(descriptor)


def holder(path: Path) -> dict[str, Any]:
    """What the lock file says about its holder; empty where it says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "pid" in found else {}


def in_use(path: Path) -> LaunchError:
    """The refusal to start in a folder that has a run in progress."""
    found = holder(path)
    who = (
        f"process {found['pid']} on {found['host']} has had it since {found['began']}"
        if found
        else "another process has it"
    )
    stop = f"stop it (on {found['host']}: kill {found['pid']})" if found else "stop it"
    return LaunchError(
        f"--output_dir {path.parent} is in use: {who}",
        expected="one run at a time in a folder",
        do=f"wait until it ends, {stop}, or pass another --output_dir; if that process is gone, delete {path}",
    )


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
