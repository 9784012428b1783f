"""Ctrl-C and SIGTERM as a wish to stop after this step, with everything saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Which signal asked for the end, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended for this signal."""
        return 128 + (self.signal or 0)


@contextmanager
def caught() -> Iterator[Interrupt]:
    """Catch SIGINT and SIGTERM; a second Ctrl-C still ends the process at once."""
    interrupt = Interrupt()
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
