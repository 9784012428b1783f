"""Writing to a disk: whether a place can be written to, and the message where it cannot, with the disk's own reason. No torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""No room left."""
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""A place that cannot be read or written."""
BROKEN = (errno.EIO, errno.ESTALE)
"""A disk, or a server of files, that no longer answers."""
NO_PLACE = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""A path where no file can be."""


@dataclass(frozen=True)
class Remedy:
    """What to do, by who wanted to write: about a full disk, and about one that takes nothing for another reason."""

    full: str
    closed: str


RUN = Remedy(
    "free space, lower checkpoint.keep or move --output_dir, then continue with --resume auto: complete checkpoints are intact",
    "make it writable again or move --output_dir, then continue with --resume auto: complete checkpoints are intact",
)
"""Of a run."""


def number_of(error: BaseException) -> int | None:
    """The error number of the operating system; safetensors and shutil raise types of their own and keep it in the text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\b(?:os error|Errno) (\d+)\b", str(error))
    return int(found[1]) if found else None


@contextmanager
def storage_errors(doing: str, place: Path, remedy: Remedy = RUN) -> Iterator[None]:
    """Turn what the disk refuses while `doing` something in `place` into a StorageError; other errors stay what they are."""
    try:
        yield
    except Exception as error:
        if number_of(error) not in (*FULL, *CLOSED, *BROKEN, *NO_PLACE):
            raise
        raise disk_problem(doing, place, error, remedy) from None


def disk_problem(doing: str, place: Path, error: Exception, remedy: Remedy = RUN) -> StorageError:
    """The message for a disk that filled up, failed or takes nothing."""
    number = number_of(error)
    reason = str(error) if number is None else os.strerror(number)
    if number in FULL:
        return StorageError(f"{doing} in {place} failed: {reason}", expected="room on the disk", do=remedy.full)
    file = getattr(error, "filename", None)
    return StorageError(
        f"{doing} in {place} failed: {reason}" + (f": {file}" if file and str(file) != str(place) else ""),
        expected="a disk that works" if number in BROKEN else "a place this user may write to",
        do=remedy.closed,
    )


def why_unwritable(place: Path) -> str:
    """Why no file can be put into the folder `place`, which need not be there yet, with the path that stands in the way.

    Empty where it can.
    """
    try:
        existing = place
        while not existing.exists():
            if existing.is_symlink():
                return f"{existing} is a link to {existing.readlink()}, which is not there"
            existing = existing.parent
        if not existing.is_dir():
            return f"{existing} is a file"
        # Asking for permissions is not enough: they say yes to root on a read-only file system, and in /proc. Nor is an
        # empty file: a full disk takes it.
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(b"\0")
        return ""
    except OSError as error:
        return f"{existing} cannot be written to ({error.strerror})"


def write_together(files: Mapping[Path, str]) -> None:
    """Write all of `files`, path -> text, or where one cannot be written none of them. Their folders are made.

    What is there already keeps its permissions, and a link leads to the new text.
    """
    files = {path.resolve(): text for path, text in files.items()}
    waiting = {path: path.with_name(f".{path.name}.writing") for path in files}
    try:
        for path, text in files.items():
            path.parent.mkdir(exist_ok=True)
            waiting[path].write_text(text, encoding="utf-8", newline="")
            if path.exists():
                shutil.copymode(path, waiting[path])
        for path, temporary in waiting.items():
            temporary.replace(path)
    finally:
        for temporary in waiting.values():
            with suppress(OSError):  # not there, or nothing can be there
                temporary.unlink()


HERE = Remedy("free space, or work in a folder on another disk", "make it writable, or work in another current folder")
"""What to do where the current folder cannot be written."""
