"""Open a data file that is text, whatever Unicode it is in; name what is not text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from toolkit.errors import DataError
from toolkit.git_lfs import is_pointer

_BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}


def check_is_data(path: Path) -> None:
    """Raise DataError for a file that only stands for the data: a Git LFS pointer, or a compressed one under another name."""
    if is_pointer(path):
        raise DataError(
            f"{str(path)!r} is a Git LFS pointer: the data itself was not downloaded",
            expected="the file that the pointer stands for",
            do="run `git lfs pull` in its repository",
        )
    start = _start(path)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{str(path)!r} is compressed ({name})",
                expected="what its name says",
                do="decompress it first",
            )


@contextmanager
def open_text(path: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """`path` as text in UTF-8, or in UTF-16 or UTF-32 where it starts with their byte-order mark.

    Raises DataError, with the line, where the bytes are not that.
    """
    start = _start(path)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in start:
        raise _without_mark(path, start)
    try:
        with path.open(encoding=encoding, newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding, error) from None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _without_mark(path: Path, start: bytes) -> DataError:
    """The error for NUL bytes: text of mostly ASCII in UTF-16 or UTF-32 has them at regular places."""
    width = 4 if start[:4].count(0) == 3 else 2
    order = "be" if start[0] == 0 else "le"
    name = f"utf-{8 * width}{order}"
    return DataError(
        f"{str(path)!r} holds NUL bytes: it is no UTF-8 text, but may be {name.upper()} without a byte-order mark",
        expected="UTF-8, or UTF-16 or UTF-32 with a byte-order mark",
        do=f"convert the file, for instance with: iconv -f {name} -t utf-8 OLD > NEW",
    )


def _undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    if encoding != "utf-8-sig":
        return DataError(
            f"{str(path)!r} starts with the byte-order mark of {encoding.upper()}, but is not that: {error.reason}",
            expected=f"{encoding.upper()} to the end of the file",
            do="write the file anew from its source",
        )
    number, byte = _first_bad_line(path)
    return DataError(
        f"{str(path)!r}, line {number:,} is not UTF-8 text (byte {byte:#04x})",
        expected="UTF-8",
        do="convert the file, for instance with: iconv -f latin1 -t utf-8 OLD > NEW",
    )


def _first_bad_line(path: Path) -> tuple[int, int]:
    """The line, 1 is the first, and the byte that are not UTF-8. A decoder reads ahead and knows neither."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    return number, 0
