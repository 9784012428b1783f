"""The text of a small configuration file, whatever kind of file the path turns out to be; never waiting without end."""

from __future__ import annotations

import codecs
import os
import select
import stat
import sys
import time
from pathlib import Path

from toolkit.errors import ConfigError, did_you_mean

LARGEST_BYTES = 64 << 20
"""Far more than any configuration; a larger file is something else."""

SILENCE_S = 3.0
"""So long a named pipe may say nothing."""

STANDARD_INPUT = Path("-")


def place_of(path: Path) -> str:
    """How messages name the file at `path`."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def read_text(path: Path, wanted: str) -> str:
    """The UTF-8 text at `path`: a regular file, a pipe such as bash's <(command), or "-" for standard input. `wanted` is for messages.

    Raises ConfigError when there is nothing to read: a missing file, a device, a pipe nobody writes to, no text.
    """
    try:
        raw = _standard_input() if path == STANDARD_INPUT else _bytes(path)
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise ConfigError(
            f"{path} does not exist{did_you_mean(path.name, beside)}",
            expected=wanted,
            do="correct the path",
        ) from None
    except OSError as error:
        raise unreadable(path, str(error.strerror)) from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise unreadable(path, "it is UTF-16 text, not UTF-8", do=f"iconv -f UTF-16 -t UTF-8 {path}") from None
        raise unreadable(path, "it is not UTF-8 text") from None


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise unreadable(STANDARD_INPUT, "it is closed")
    if sys.stdin.isatty():
        raise unreadable(STANDARD_INPUT, "it is a terminal, and nothing was piped into it")
    raw = sys.stdin.buffer.read(LARGEST_BYTES + 1)
    if len(raw) > LARGEST_BYTES:
        raise _too_large(STANDARD_INPUT)
    return raw


def _bytes(path: Path) -> bytes:
    kind = path.stat()
    if stat.S_ISDIR(kind.st_mode):
        raise unreadable(path, "Is a directory")
    if stat.S_ISFIFO(kind.st_mode):
        return _from_pipe(path)
    if not stat.S_ISREG(kind.st_mode):
        raise unreadable(path, "it is a device or a socket, not a file")
    if kind.st_size > LARGEST_BYTES:
        raise _too_large(path)
    with path.open("rb") as file:
        # Files of /proc have no size of their own.
        return file.read(LARGEST_BYTES)


def _from_pipe(path: Path) -> bytes:
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    parts: list[bytes] = []
    heard = time.monotonic()
    try:
        while sum(map(len, parts)) <= LARGEST_BYTES:
            if time.monotonic() - heard > SILENCE_S:
                raise unreadable(path, f"it is a pipe into which nothing was written for {SILENCE_S:g} s")
            select.select([pipe], [], [], 0.05)
            try:
                part = os.read(pipe, 1 << 16)
            except BlockingIOError:
                continue
            if part:
                parts.append(part)
                heard = time.monotonic()
            elif parts:
                return b"".join(parts)
            else:
                time.sleep(0.05)  # nobody has opened the other end yet
    finally:
        os.close(pipe)
    raise _too_large(path)


def unreadable(path: Path, reason: str, do: str = "correct the path") -> ConfigError:
    """What is raised for a file that is there but cannot be read."""
    return ConfigError(f"{place_of(path)} cannot be read: {reason}", expected="a readable JSON file", do=do)


def _too_large(path: Path) -> ConfigError:
    return unreadable(path, f"it has more than {LARGEST_BYTES >> 20} MiB, which no DeepSpeed JSON has")
