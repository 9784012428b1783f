"""One run at a time in a folder, also where a holder is killed, forks, or has a file system without locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolkit.errors import LaunchError
from toolkit.train import beat_lock, lock_holder, run_lock
from toolkit.train.lock_holder import LOCK, holder
from toolkit.train.run_lock import RunLock, check_free

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


def test_a_lock_keeps_other_descriptors_from_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMB locks are mandatory: they deny access to all but the descriptor that holds them."""

    def denied(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    lock = RunLock(tmp_path)
    with monkeypatch.context() as smb:
        smb.setattr(Path, "open", denied)
        lock.take()
    assert holder(tmp_path / LOCK)["pid"] == os.getpid()
    with monkeypatch.context() as smb:
        smb.setattr(fcntl, "flock", denied)
        smb.setattr(Path, "open", denied)
        smb.setattr(run_lock, "PAUSE_S", 0.0)
        for attempt in (lambda: check_free(tmp_path), RunLock(tmp_path).take):
            with pytest.raises(LaunchError, match="is in use: "):
                attempt()
    lock.release()


@pytest.fixture
def no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system without locks."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(beat_lock, "BEAT_S", 0.05)
    return tmp_path


def test_a_file_system_without_locks(no_locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = RunLock(no_locks)
    mine.take()
    with pytest.raises(LaunchError, match=f"process {os.getpid()} on"):
        RunLock(no_locks).take()
    # As another container sees it, whose host may have the same name: it cannot ask for the process. The file changes.
    monkeypatch.setattr(lock_holder, "identity", lambda _: ["this boot", "another namespace", "1"])
    with pytest.raises(LaunchError, match="has had it since"):
        RunLock(no_locks).take()
    mine.release()
    assert list(no_locks.iterdir()) == []


def left_behind(case: str) -> str:
    """What a holder that was killed has left in the file."""
    here = {"host": socket.gethostname(), "began": "then", "beat": 3}
    boot, namespace, started = lock_holder.identity(os.getpid()) or ["", "", ""]
    same_number = here | {"pid": os.getpid()}
    return {
        "no such process": json.dumps(here | {"pid": 2**22 + 1, "identity": [boot, namespace, "7"]}),
        "its number is another process's": json.dumps(same_number | {"identity": [boot, namespace, f"{started}0"]}),
        "its container had my host's name and my number": json.dumps(
            same_number | {"identity": [boot, "pid:[1]", "7"]}
        ),
        "of before the last boot": json.dumps(same_number | {"identity": ["another", namespace, started]}),
        "of an older version": json.dumps(same_number),
        "empty": "",
        "half written": json.dumps(same_number)[:20],
    }[case]


GONE_AT_ONCE = ("no such process", "its number is another process's")
WATCHED = (
    "its container had my host's name and my number",
    "of before the last boot",
    "of an older version",
    "empty",
    "half written",
)


@pytest.mark.parametrize("case", [*GONE_AT_ONCE, *WATCHED])
def test_what_a_killed_run_left_is_taken_over(no_locks: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_locks / LOCK).write_text(left_behind(case))
    slept: list[float] = []
    monkeypatch.setattr(beat_lock.time, "sleep", slept.append)
    lock = RunLock(no_locks)
    lock.take()
    assert len(slept) == (beat_lock.WATCH_BEATS if case in WATCHED else 0)
    assert holder(no_locks / LOCK)["pid"] == os.getpid()
    lock.release()
    assert list(no_locks.iterdir()) == []


@pytest.mark.parametrize("case", WATCHED)
def test_one_that_still_beats_is_not(no_locks: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one in another container, or one that is just writing who it is."""
    (no_locks / LOCK).write_text(left_behind(case))
    beats = json.dumps({"host": "elsewhere", "pid": 7, "began": "then", "beat": 4})
    monkeypatch.setattr(beat_lock.time, "sleep", lambda _: (no_locks / LOCK).write_text(beats))
    with pytest.raises(LaunchError, match="process 7 on elsewhere"):
        RunLock(no_locks).take()
    assert (no_locks / LOCK).read_text() == beats


def test_of_two_that_find_the_same_leftover_one_gets_it(no_locks: Path) -> None:
    (no_locks / LOCK).write_text("")
    late = beat_lock.BeatLock(no_locks / LOCK)
    left = late._watch()
    assert left == b""
    first = RunLock(no_locks)
    first.take()
    with pytest.raises(LaunchError, match=f"process {os.getpid()} on"):
        late._clear(left)
    assert holder(no_locks / LOCK)["pid"] == os.getpid()
    first.release()
    assert list(no_locks.iterdir()) == []
