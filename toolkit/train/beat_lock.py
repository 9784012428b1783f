"""A lock for file systems without locks: a file that its holder changes every few seconds. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from toolkit.train.lock_holder import describe_me, holder, in_use, lives

BEAT_S = 5.0
WATCH_BEATS = 4
TRIES = 3


class BeatLock:
    """The right to the file `path`. `take` raises LaunchError while another process has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Hold the file until `release`, or the end of this process."""
        for _ in range(TRIES):
            if self._create():
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()
                return
            left = self._watch()
            if left is not None:
                self._clear(left)
        raise in_use(self.path)

    def release(self) -> None:
        """Let go; the file goes as well."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._owner() == self._token:
                self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the file, which one process alone can do; False where there is one."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, self._text(0).encode())
        finally:
            os.close(descriptor)
        return True

    def _watch(self) -> bytes | None:
        """What a holder that is gone has left in the file; None where it has let go. Raises LaunchError when it is there."""
        before = _content(self.path)
        alive = lives(holder(self.path))
        if alive:
            raise in_use(self.path)
        if alive is not None or before is None:
            return before
        # Of another machine or container, or killed before it had written who it is.
        for _ in range(WATCH_BEATS):
            time.sleep(BEAT_S)
            now = _content(self.path)
            if now is None:
                return None
            if now != before:
                raise in_use(self.path)
        return before

    def _clear(self, left: bytes) -> None:
        """Take the file away, unless another start has done so and holds it by now."""
        aside = self.path.with_name(f"{self.path.name}.{self._token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if _content(aside) != left:
            aside.rename(self.path)
            raise in_use(self.path)
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        beat = 0
        # By rename: a reader sees one text or the next. One that was stopped for so long that it lost the file leaves it;
        # a file that is away for a moment (`_clear`) is not lost.
        next_one = self.path.with_name(f"{self.path.name}.writing")
        while not self._ended.wait(BEAT_S) and self._owner() in (self._token, None):
            beat += 1
            with contextlib.suppress(OSError):
                next_one.write_text(self._text(beat), encoding="utf-8")
                next_one.replace(self.path)

    def _text(self, beat: int) -> str:
        return describe_me(token=self._token, beat=beat)

    def _owner(self) -> Any:
        """The token in the file; None where it has none."""
        return holder(self.path).get("token")


def _content(path: Path) -> bytes | None:
    """None where there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
