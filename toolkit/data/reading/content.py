"""What a source holds, as a digest: the same bytes under any path, time and host give the same one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

SETTLED_S = 2.0
"""A digest of a file changed more recently than this is not remembered: its times cannot tell two changes apart."""
SMALL = 16 * 2**20
"""Bytes up to which a file is hashed anew each time, in about 10 ms."""
MISSING = (0, 0, 0, 0)
"""The state of a file that is not there."""
SAMPLE_BLOCKS, SAMPLE_BLOCK = 64, 64 * 2**10
"""What a sample of a file holds: so many blocks, of so many bytes."""


def combined(*parts: object) -> str:
    """A digest of JSON-able `parts`, 32 hex digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def files_digest(paths: Sequence[Path], cache_dir: Path) -> str:
    """A digest of the bytes of `paths` in their order; names, places and times play no part."""
    return combined(*(file_digest(path, cache_dir) for path in paths))


def sampled_digest(paths: Sequence[Path]) -> str:
    """A digest of `paths`, each by its size and a sample, for streams of any length: milliseconds a file.

    The sample is all of a file up to 4 MiB, else 64 blocks of 64 KiB, the first and the last bytes among them. A change
    in place between them that keeps the size is not noticed. Times play no part, so a copy has the same digest.
    """
    return combined("sample", *(_sample(path) for path in paths))


def tree_digest(paths: Sequence[Path], root: Path, cache_dir: Path) -> str:
    """A digest of the names of `paths`, from `root` on, and of their bytes; for folders of very many small files.

    What is remembered, once, is that of all files together: it holds while each has its inode, size and times.
    """
    states: list[list[Any]] = [
        [str(path.relative_to(root)), *(_state(path.stat()) if path.is_file() else MISSING)] for path in paths
    ]
    newest = max((max(state[3], state[4]) for state in states), default=0) / 1e9
    name = hashlib.sha256(json.dumps([str(root.resolve()), states]).encode()).hexdigest()
    note = cache_dir / "content" / f"tree-{name[:24]}"
    note.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{note}.lock"):  # one process reads them all, the others wait
        if note.exists():
            return note.read_text()
        parts = [[str(path.relative_to(root)), _hashed(path) if path.is_file() else None] for path in paths]
        digest = combined("tree", parts)
        if time.time() - newest > SETTLED_S:
            handle = note.with_name(f"{note.name}.tmp-{os.getpid()}")
            handle.write_text(digest)
            handle.replace(note)
        return digest


def file_digest(path: Path, cache_dir: Path) -> str:
    """SHA-256 of the bytes of `path`: about a second per GB the first time, then remembered in `cache_dir`.

    One process hashes and the others wait for what it remembers. That holds while inode, size and both times stay. The
    time of the inode's last change is set by the kernel alone, so a copy that keeps the modification time (rsync -t,
    cp -p, tar) is noticed. The number of the device is no part of it: hosts that share a file system may differ in it.
    """
    if path.stat().st_size <= SMALL:
        return _hashed(path)
    note = cache_dir / "content" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    known = _remembered(note, path)
    if known is not None:
        return known
    note.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{note}.lock"):
        known = _remembered(note, path)
        if known is not None:
            return known
        age = _age(path.stat())
        if 0 <= age <= SETTLED_S:  # wait until the digest can be remembered, so that nobody hashes once more
            time.sleep(SETTLED_S - age + 0.05)
        status = path.stat()
        digest = _hashed(path)
        if _age(status) > SETTLED_S:
            _remember(note, {"state": _state(status), "sha256": digest})
        return digest


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sample(path: Path) -> list[object]:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= SAMPLE_BLOCKS * SAMPLE_BLOCK:
            digest.update(file.read())
        else:
            for number in range(SAMPLE_BLOCKS):
                file.seek(number * (size - SAMPLE_BLOCK) // (SAMPLE_BLOCKS - 1))
                digest.update(file.read(SAMPLE_BLOCK))
    return [size, digest.hexdigest()]


def _state(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _age(status: os.stat_result) -> float:
    """Seconds since the last change; of a time in the future it is negative."""
    return time.time() - max(status.st_mtime, status.st_ctime)


def _remembered(note: Path, path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text())
        if known["state"] == _state(path.stat()):
            return str(known["sha256"])
    return None


def _remember(note: Path, value: object) -> None:
    """Write `note` at once or not at all; hosts whose locks do not reach each other may do so at the same time."""
    handle, temporary = tempfile.mkstemp(prefix=f"{note.name}.tmp-", dir=note.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file)
        Path(temporary).replace(note)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
