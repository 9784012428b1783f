"""Directories of the cache that are complete or not there: built beside their place and renamed, under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from toolkit.errors import StorageError
from toolkit.storage import CLOSED, FULL, number_of

_STAMP = "SOURCE"  # no suffix: a reader of the folder must not take it for rows


def is_installed(target: Path, stamp: dict[str, object]) -> bool:
    """Whether the directory `target` was finished and is what `stamp` says."""
    try:
        return bool(json.loads((target / _STAMP).read_text(encoding="utf-8")) == stamp)
    except (OSError, ValueError):
        return False


def install(target: Path, stamp: dict[str, object], build: Callable[[Path], object], *, disk_bytes: int = 0) -> bool:
    """Make the directory `target` by calling `build(empty_directory)`, all or nothing; False if it was there already.

    A kill leaves no `target`; a second process waits for the first and then finds the work done. `disk_bytes` must be free.
    Raises StorageError for a full disk and for a cache that cannot be written.
    """
    if is_installed(target, stamp):
        return False
    with _storage_errors(target.parent), _locked(target):
        if is_installed(target, stamp):
            return False
        for left in target.parent.glob(f".{target.name}.partial-*"):  # of a process that was killed: we hold its lock
            shutil.rmtree(left, ignore_errors=True)
        if shutil.disk_usage(target.parent).free < disk_bytes:
            raise disk_full(target.parent, disk_bytes)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            made = scratch / "made"
            made.mkdir()
            build(made)
            (made / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
            _flush(made)
            if target.exists():  # an older revision, or something unfinished put there by hand
                target.rename(scratch / "old")
            made.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return True


def disk_full(folder: Path, needed: int = 0) -> StorageError:
    """The error for a disk without the room; `needed` in bytes, 0 if it is not known."""
    usage = shutil.disk_usage(folder)
    return StorageError(
        f"the disk of {folder} is full: {usage.free / 2**30:.1f} GiB free",
        expected=f"{needed / 2**30:.1f} GiB free" if needed else "room for the files",
        do="free some space there, or set TOOLKIT_CACHE to a folder on a larger disk",
    )


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the kernel drops it with the process, so it is never stale
        yield


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk and a cache that cannot be written into their messages."""
    try:
        yield
    except Exception as error:
        number = number_of(error)
        if number in FULL:
            raise disk_full(folder if folder.exists() else Path.cwd()) from error
        if number in CLOSED:
            raise StorageError(
                f"cannot write to {folder}: {error}",
                expected="a cache folder of your own",
                do="set TOOLKIT_CACHE to a folder you can write to",
            ) from error
        raise


def _flush(folder: Path) -> None:
    """Bring every file of `folder` to the disk, readable by all: a rename must not get there before the data."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
