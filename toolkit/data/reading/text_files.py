"""Open a data file that is text, whatever Unicode it is in; name what is not text."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.data.reading.compressed import check_compression, open_bytes
from toolkit.errors import DataError
from toolkit.git_lfs import is_pointer

MARK = "\ufeff"
"""The byte-order mark as a character."""
_BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODED_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


def check_is_data(path: Path) -> None:
    """Raise DataError for a file that only stands for the data: a Git LFS pointer, or one compressed in another way than its name says."""
    if is_pointer(path):
        raise DataError(
            f"{str(path)!r} is a Git LFS pointer: the data itself was not downloaded",
            expected="the file that the pointer stands for",
            do="run `git lfs pull` in its repository",
        )
    check_compression(path)


@contextmanager
def open_lines(path: Path, *, newline: str | None = None) -> Iterator[Iterator[str]]:
    """The lines of `path`, decompressed: text in UTF-8, or in UTF-16 or UTF-32 where it starts with their byte-order mark.

    `newline` is that of `open`. A byte-order mark is no text: it is left out, also at the start of a later line, where
    files that each begin with one were joined. Other control characters are text, but NUL is not: it is what is left of
    a write that did not finish. Raises DataError, with the line, where the bytes are not text.
    """
    with open_bytes(path) as file:
        start = file.read(4096)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
    if encoding == "utf-8":
        _check_width(path, start)
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding=encoding, newline=newline) as text:
            yield _without_marks_and_nul(text, path)
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding, error) from None


def _without_marks_and_nul(lines: Iterator[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise DataError(
                f"{str(path)!r}, line {number:,} holds NUL, a character of no text (code 0)",
                expected="text; a file that was not written to its end, or was damaged, may hold such bytes",
                do="write the file anew from its source, or remove that line",
            )
        yield line.lstrip(MARK) if line.startswith(MARK) else line


def _check_width(path: Path, start: bytes) -> None:
    """Raise DataError for UTF-16 or UTF-32 without a mark: its spaces and line ends have NUL bytes at regular places."""
    places = [place for place, byte in enumerate(start) if byte == 0]
    is_wide = start[:4].count(0) == 3
    if not is_wide and (len(places) < 2 or len({place % 2 for place in places}) > 1):
        return
    order = "le" if (start[0] if is_wide else places[0] % 2) else "be"
    name = f"utf-{32 if is_wide else 16}{order}"
    raise DataError(
        f"{str(path)!r} holds NUL bytes: it is no UTF-8 text, but may be {name.upper()} without a byte-order mark",
        expected="UTF-8, or UTF-16 or UTF-32 with a byte-order mark",
        do=f"convert the file, for instance with: iconv -f {name} -t utf-8 OLD > NEW",
    )


def _undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    if encoding != "utf-8":
        return DataError(
            f"{str(path)!r} starts with the byte-order mark of {encoding.upper()}, but is not that: {error.reason}",
            expected=f"{encoding.upper()} to the end of the file",
            do="write the file anew from its source",
        )
    number, line, place, is_last = _first_bad_line(path)
    where = f"{str(path)!r}, line {number:,}"
    if _ENCODED_SURROGATE.match(line, place):
        return DataError(
            f"{where} holds half a character, a surrogate (U+D800 to U+DFFF) written as UTF-8",
            expected="whole characters",
            do="write the row anew from its source, or remove it",
        )
    if is_last and "unexpected end" in error.reason:
        return DataError(
            f"{where} ends in the middle of a character: the file was cut off",
            expected="UTF-8 to the end of the file",
            do="copy it again, or write it anew from its source",
        )
    return DataError(
        f"{where} is not UTF-8 text (byte {line[place]:#04x})",
        expected="UTF-8",
        # Windows-1252 has the letters of latin1, and some more where that has control characters.
        do="convert the file, for instance with: iconv -f windows-1252 -t utf-8 OLD > NEW",
    )


def _first_bad_line(path: Path) -> tuple[int, bytes, int, bool]:
    """The number (1 is the first) and the bytes of the line that is not UTF-8, where in it, and whether it is the last.

    A decoder reads ahead and knows none of this.
    """
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line, error.start, not file.read(1)
    raise AssertionError("every line decodes")
