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

SETTLED_S = 2.0
"""A file changed more recently than this is hashed anew the next time: its times cannot tell two changes apart."""


def combined(*parts: object) -> str:
    """A digest of JSON-able `parts`, 32 hex digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def files_digest(paths: Sequence[Path], cache_dir: Path) -> str:
    """A digest of the bytes of `paths` in their order; names, places and times play no part."""
    return combined(*(file_digest(path, cache_dir) for path in paths))


def file_digest(path: Path, cache_dir: Path) -> str:
    """SHA-256 of the bytes of `path`: about a second per GB the first time, then remembered in `cache_dir`.

    What is remembered holds while device, inode, size and both times stay. The time of the inode's last change is set
    by the kernel alone, so a copy that keeps the modification time (rsync -t, cp -p, tar) is noticed.
    """
    status = path.stat()
    state = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_dir / "content" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text())
        if known["state"] == state:
            return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_S:
        _remember(note, {"state": state, "sha256": digest})
    return digest


def _remember(note: Path, value: object) -> None:
    """Write `note` at once or not at all; ranks may do so at the same time."""
    note.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f"{note.name}.tmp-", dir=note.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file)
        Path(temporary).replace(note)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
