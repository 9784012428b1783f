"""Disks that take little or nothing, for tests that run with the right to mount."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of `num_bytes` at `folder`."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """`folder`, made, as a file system that nothing is written to. Permissions would not do: they bind no root."""
    with small_disk(folder, 4096):
        _mount("-o", "remount,ro", str(folder))
        yield folder


def _mount(*words: str) -> None:
    mount = shutil.which("mount")
    done = subprocess.run([mount, *words], capture_output=True, text=True) if mount else None
    if done is None or done.returncode != 0:
        why = done.stderr.strip() if done else "no mount program"
        pytest.skip(f"cannot mount a disk: {why}; to run it: be root, with the right to mount")
