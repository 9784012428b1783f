"""A kill while DeepSpeed compiles a kernel must not make the next start wait for ever."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from toolkit.engine import kernels
from toolkit.engine.build_lock import LOOKS_EVERY_S, ownerless, remove
from toolkit.errors import StorageError

BUILD = (
    "import os, sys, time\nos.open(sys.argv[1], os.O_CREAT | os.O_EXCL)\nprint('building', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / "py311_cpu" / "cpu_adam"
    folder.mkdir(parents=True)
    return folder / "lock"


TAKE = """
import sys
from toolkit.engine.build_lock import BuildLock
lock = BuildLock(sys.argv[1])
print("waiting", flush=True)
assert lock.try_acquire()
print("ours", flush=True)
lock.release()
"""


def test_the_lock_of_a_killed_build_is_taken_over_that_of_a_running_one_is_waited_for(lock: Path) -> None:
    """By all who wait: each has it in its turn."""
    # torch's own lock: the file is opened with O_EXCL and stays open while the build runs (torch/utils/file_baton.py).
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(lock)], stdout=subprocess.PIPE)
    waiting = []
    try:
        assert build.stdout is not None and build.stdout.readline() == b"building\n"
        waiting = [subprocess.Popen([sys.executable, "-c", TAKE, str(lock)], stdout=subprocess.PIPE) for _ in range(3)]
        for process in waiting:
            assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
        time.sleep(2.5 * LOOKS_EVERY_S)
        assert lock.exists() and all(process.poll() is None for process in waiting)
        build.kill()
        build.communicate()
        assert lock.exists()
        assert [process.communicate(timeout=30)[0] for process in waiting] == [b"ours\n"] * 3
        assert [process.returncode for process in waiting] == [0] * 3
    finally:
        for process in (build, *waiting):
            process.kill()
    assert not lock.exists()


def test_a_lock_of_another_user_or_of_a_newer_build_stays(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ownerless(lock) is None
    lock.touch()
    number = lock.stat().st_ino
    assert ownerless(lock) == number
    remove(lock, number + 1)
    assert lock.exists()
    monkeypatch.setattr(os, "geteuid", lambda: lock.stat().st_uid + 1)
    assert ownerless(lock) is None


def test_a_killed_build_is_finished_by_who_comes_next(lock: Path) -> None:
    """A build by torch that is killed while it compiles."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler; to run it: install g++")
    source = lock.parent / "source.cpp"
    source.write_text(SEVEN)
    command = [sys.executable, "-c", LOAD, str(source), str(lock.parent)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    while not lock.exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert lock.exists() and not list(lock.parent.glob("*.so"))
    second = subprocess.run(command, capture_output=True, timeout=120)
    assert (second.stdout, second.returncode) == (b"7\n", 0)


SEVEN = """
#include <Python.h>
static PyObject* seven(PyObject*, PyObject*) { return PyLong_FromLong(7); }
static PyMethodDef methods[] = {{"seven", seven, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "seven", "", -1, methods};
PyMODINIT_FUNC PyInit_seven(void) { return PyModule_Create(&module); }
"""
LOAD = """
import sys
from torch.utils import cpp_extension
from toolkit.engine import build_lock
build_lock.use()
print(cpp_extension.load("seven", [sys.argv[1]], build_directory=sys.argv[2]).seven())
"""


def test_a_lock_that_cannot_be_removed() -> None:
    # pytest's own folders are closed to the other user that root becomes: root may remove everything.
    with tempfile.TemporaryDirectory() as root:
        lock = Path(root) / "py" / "cpu_adam" / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        Path(root).chmod(0o755)
        lock.parent.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(StorageError) as failure:
                remove(lock, lock.stat().st_ino)
        finally:
            if user == 0:
                os.seteuid(0)
            lock.parent.chmod(0o755)
    assert failure.value.what == f"{lock} was left by a killed build and cannot be removed: Permission denied"
    assert failure.value.do == f"rm {lock}, or set TORCH_EXTENSIONS_DIR to another folder"


def test_the_ninja_of_this_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\necho 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    ours = Path(sys.executable).parent / "ninja"
    assert ours.is_file()
    assert shutil.which("ninja") == str(other)
    kernels.own_ninja_first()
    assert shutil.which("ninja") == str(ours)
    before = os.environ["PATH"]
    kernels.own_ninja_first()
    assert os.environ["PATH"] == before
