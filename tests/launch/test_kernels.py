"""A kill while DeepSpeed compiles a kernel must not make the next start wait for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from toolkit.engine import kernels
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


def test_the_lock_of_a_killed_build_is_removed_that_of_a_running_one_stays(lock: Path) -> None:
    assert kernels.remove_stale_locks() == []
    # torch's own lock: the file is opened with O_EXCL and stays open while the build runs (torch/utils/file_baton.py).
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(lock)], stdout=subprocess.PIPE)
    try:
        assert build.stdout is not None and build.stdout.readline() == b"building\n"
        assert kernels.remove_stale_locks() == []
        assert lock.exists()
    finally:
        build.kill()
        build.communicate()
    assert kernels.remove_stale_locks() == [lock]
    assert not lock.exists()


def test_a_lock_that_cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own folders are closed to the other user that root becomes: root may remove everything.
    with tempfile.TemporaryDirectory() as root:
        lock = Path(root) / "py" / "cpu_adam" / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", root)
        Path(root).chmod(0o755)
        lock.parent.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(StorageError) as failure:
                kernels.remove_stale_locks()
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
