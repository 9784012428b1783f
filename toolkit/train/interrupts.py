"""Ctrl-C and SIGTERM as a wish to stop after this step, with everything saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ONE_PRESS_S = 1.0
"""A key press reaches a rank twice: from the terminal, and once more from a launcher that passes it on."""


class Interrupt:
    """Which signal asked for the end, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal == number == signal.SIGINT:
            if now - self._since >= ONE_PRESS_S:
                raise KeyboardInterrupt
            return
        self.signal, self._since = number, now

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended for this signal."""
        return 128 + (self.signal or 0)


@contextmanager
def caught() -> Iterator[Interrupt]:
    """Catch SIGINT and SIGTERM; a second Ctrl-C, ONE_PRESS_S or more after the first, still ends the process at once."""
    interrupt = Interrupt()
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
