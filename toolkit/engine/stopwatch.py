"""Where the time of a run goes. Work on a CUDA device is timed by events on its stream, which nobody waits for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from toolkit.engine import device

Item = TypeVar("Item")
Result = TypeVar("Result")

DATA, COMPUTE, OPTIMIZER, WAITING = "data", "forward+backward", "optimizer", "waiting"
APART = ("evaluation", "saving")
"""Parts that no step has, and that the shares of the steps leave out."""


class Clock(Protocol):
    """Marks in the course of the work, which may lie in the future of the thread that sets them."""

    def mark(self) -> Any:
        """The point that the work has reached once all that is queued by now is done."""
        ...

    def is_past(self, mark: Any) -> bool:
        """Whether the work has reached `mark`. Does not wait."""
        ...

    def seconds(self, start: Any, stop: Any) -> float:
        """Between two marks of the past."""
        ...


class HostClock:
    """Where work is done as it is called for."""

    def mark(self) -> float:
        return time.perf_counter()

    def is_past(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, stop: float) -> float:
        return stop - start


class CudaClock:
    """Events on the current stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def is_past(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        return float(start.elapsed_time(stop)) / 1000.0


@dataclass(frozen=True)
class _Span:
    name: str
    outer: str | None
    start: Any
    stop: Any


class Stopwatch:
    """Seconds of each named part of a run. Of parts inside each other, each second is the inner one's."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or (CudaClock() if device.kind() == "cuda" else HostClock())
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._pending: deque[_Span] = deque()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book what is queued inside this context, and what it waits for, on `name`."""
        outer = self._open[-1] if self._open else None
        start = self.clock.mark()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            self._pending.append(_Span(name, outer, start, self.clock.mark()))

    def timed(self, name: str, function: Callable[..., Result]) -> Callable[..., Result]:
        """`function`, as a part called `name` each time it runs."""

        def run(*arguments: Any, **options: Any) -> Result:
            with self.part(name):
                return function(*arguments, **options)

        return run

    @contextmanager
    def on_host(self, name: str) -> Iterator[None]:
        """Book the time that this thread spends inside this context on `name`, whatever the device does meanwhile."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - began)

    def waited_for(self, items: Iterable[Item], name: str = DATA) -> Iterator[Item]:
        """The same items; the time that this thread waits for each is booked on `name`."""
        iterator, end = iter(items), object()
        try:
            while True:
                with self.on_host(name):
                    item: Any = next(iterator, end)
                if item is end:
                    return
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def read(self) -> Mapping[str, float]:
        """Seconds so far of each part whose end the work has reached. Does not wait."""
        while self._pending and self.clock.is_past(self._pending[0].stop):
            span = self._pending.popleft()
            seconds = self.clock.seconds(span.start, span.stop)
            self._add(span.name, seconds)
            if span.outer is not None:
                self._add(span.outer, -seconds)
        return self._seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def split(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """`total` seconds of a run's loop by part: COMPUTE and OPTIMIZER as booked, DATA at most what they leave.

    Waiting for data that the device does not notice, since it still computes, costs nothing. What nobody has booked is
    WAITING: the record of a step, the trackers, other ranks.
    """
    apart = {name: seconds[name] for name in APART if name in seconds}
    computed = {name: seconds.get(name, 0.0) for name in (COMPUTE, OPTIMIZER)}
    left = max(0.0, total - sum(apart.values()) - sum(computed.values()))
    data = min(seconds.get(DATA, 0.0), left)
    return {DATA: data, **computed, WAITING: left - data, **apart}


def shares_line(parts: Mapping[str, float]) -> str:
    """time: 3% data, 81% forward+backward, 12% optimizer, 4% waiting; beside it 12.0 s evaluation."""
    steps = {name: value for name, value in parts.items() if name not in APART}
    total = sum(steps.values())
    said = ", ".join(f"{value / total if total else 0.0:.0%} {name}" for name, value in steps.items())
    beside = " and ".join(f"{value:.1f} s {name}" for name, value in parts.items() if name in APART)
    return f"time: {said}" + (f"; beside it {beside}" if beside else "")
