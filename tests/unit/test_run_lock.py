"""One run at a time in a folder, also where a holder is killed, forks, or has a file system without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolkit.errors import LaunchError
from toolkit.train import run_lock
from toolkit.train.run_lock import LOCK, RunLock, check_free

HOLD = """
import os, sys
from pathlib import Path
from toolkit.train.run_lock import RunLock
RunLock(Path(sys.argv[1])).take()
if sys.argv[2] == "fork":
    print(os.fork() or "child", flush=True)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_run(folder: Path, mode: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds `folder` until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "held":
            assert process.poll() is None
        try:
            yield process
        finally:
            process.kill()


def test_the_second_is_refused_and_a_kill_frees(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_run(folder) as other:
        for attempt in (lambda: check_free(folder), RunLock(folder).take):
            with pytest.raises(LaunchError) as refused:
                attempt()
            host = socket.gethostname()
            assert f"--output_dir {folder} is in use: process {other.pid} on {host} has had it since " in str(
                refused.value
            )
            assert f"kill {other.pid}" in refused.value.do and refused.value.exit_code == 2
        assert [path.name for path in folder.iterdir()] == [LOCK]
        other.send_signal(signal.SIGKILL)
        other.wait()
        check_free(folder)
        mine = RunLock(folder)
        mine.take()
        with pytest.raises(LaunchError, match=f"process {os.getpid()} on"):
            check_free(folder)
        mine.release()
    assert list(folder.iterdir()) == []
    check_free(folder)
    check_free(tmp_path / "never")


def test_a_worker_that_outlives_the_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    with another_run(tmp_path, "fork") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        RunLock(tmp_path).take()


def test_a_deleted_lock_is_no_lock(tmp_path: Path) -> None:
    with another_run(tmp_path):
        (tmp_path / LOCK).unlink()
        lock = RunLock(tmp_path)
        lock.take()
        lock.release()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(run_lock, "BEAT_S", 0.05)
    mine = RunLock(tmp_path)
    mine.take()
    with pytest.raises(LaunchError, match=f"process {os.getpid()} on"):
        RunLock(tmp_path).take()
    # As another host sees it, which cannot ask for the process: the file changes.
    here = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(LaunchError, match="has had it since"):
        RunLock(tmp_path).take()
    monkeypatch.setattr(socket, "gethostname", lambda: here)
    mine.release()
    assert list(tmp_path.iterdir()) == []
    # Left by a run that was killed: on this host, and on another one.
    gone = subprocess.Popen(["true"])
    gone.wait()
    for host in (here, "elsewhere"):
        (tmp_path / LOCK).write_text(f'{{"host": "{host}", "pid": {gone.pid}, "began": "then", "beat": 3}}')
        began = time.monotonic()
        lock = RunLock(tmp_path)
        lock.take()
        lock.release()
        assert time.monotonic() - began < 5
