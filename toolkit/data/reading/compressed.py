"""Data files that are compressed as a whole: told by their first bytes and by their name, read without unpacking them."""

from __future__ import annotations

import contextlib
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow

from toolkit.data.reading.file_names import COMPRESSED, plain_name, unpacking
from toolkit.errors import DataError, one_line

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
)
_SKIPPABLE = b"\x2a\x4d\x18"
"""After a first byte of 0x50 to 0x5f: a frame without data, with which parallel compressors of zstd and lz4 begin."""


def check_compression(path: Path) -> None:
    """Raise DataError for a file whose name and first bytes say different things about its compression."""
    said, found = COMPRESSED.get(path.suffix.lower()), compression(path)
    if said == found or path.stat().st_size == 0:
        return
    plain = plain_name(path)
    if found == "zip":
        raise DataError(
            f"{str(path)!r} is a zip archive by its content",
            expected="what its name says",
            do=f"unpack it: {unpacking(path, '.zip')}",
        )
    if found is None:
        raise DataError(
            f"{str(path)!r} is not compressed, or not with {said}",
            expected=f"what its name says, a file compressed with {said}",
            do=f"rename it to {plain.name} if it is plain; else write it anew, it is damaged",
        )
    suffix = next(suffix for suffix, name in COMPRESSED.items() if name == found)
    raise DataError(
        f"{str(path)!r} is compressed ({found}), and its name {f'says {said}' if said else 'does not say so'}",
        expected=f"a name that ends in {suffix}",
        do=f"rename it to {plain.name}{suffix}",
    )


def compression(path: Path) -> str | None:
    """How `path` is compressed, by its first bytes; None for a plain file."""
    with path.open("rb") as file:
        start = file.read(8)
    if start[1:4] == _SKIPPABLE and start[0] & 0xF0 == 0x50:
        return COMPRESSED.get(path.suffix.lower(), "zstd")
    return next((name for magic, name in _MAGIC if start.startswith(magic)), None)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of `path`, decompressed. Raises DataError where they break off or are damaged."""
    how = COMPRESSED.get(path.suffix.lower())
    try:
        with _opened(path, how) as file:
            yield file
    except (DataError, UnicodeDecodeError):
        # What its user found wrong: the true cause may be damage, which checksums at the end tell.
        if how is not None:
            _read_through(path, how)
        raise
    except (OSError, EOFError, lzma.LZMAError) as error:
        if how is None or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise _damaged(path, how, error) from None


def _read_through(path: Path, how: str) -> None:
    """Raise DataError for a file that is damaged anywhere."""
    try:
        with _opened(path, how) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _damaged(path, how, error) from None


def _damaged(path: Path, how: str, error: Exception) -> DataError:
    cut = isinstance(error, EOFError) or "Truncated" in str(error)
    return DataError(
        f"{str(path)!r} {'breaks off: its end is missing' if cut else f'is damaged: {one_line(error)}'}",
        expected=f"a whole file compressed with {how}",
        do="copy or download it again, or write it anew from its source",
    )


def _opened(path: Path, how: str | None) -> contextlib.AbstractContextManager[BinaryIO]:
    if how is None:
        return path.open("rb")
    if how == "xz":
        return cast(BinaryIO, lzma.open(path))
    codec = "bz2" if how == "bzip2" else how
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=codec, buffer_size=1 << 16))
