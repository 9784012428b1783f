"""The time shares of a run: nested parts, marks that lie in the future, and a device that hides the wait for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from toolkit.engine.stopwatch import HostClock, Stopwatch, shares_line, split


class Late:
    """A clock whose work lags behind: a mark is past once `now` has reached it."""

    def __init__(self) -> None:
        self.queued = self.now = 0.0

    def mark(self) -> float:
        return self.queued

    def is_past(self, mark: float) -> bool:
        return mark <= self.now

    def seconds(self, start: float, stop: float) -> float:
        assert stop <= self.now, "a mark was read before the work reached it"
        return stop - start


def test_parts_are_booked_once_the_work_has_reached_their_ends() -> None:
    clock = Late()
    watch = Stopwatch(clock)
    for _ in range(2):
        with watch.part("step"):
            clock.queued += 5.0
            with watch.part("update"):
                clock.queued += 2.0
            clock.queued += 1.0
    assert watch.read() == {}
    clock.now = 9.0  # in the second step
    assert watch.read() == {"step": 6.0, "update": 2.0}
    clock.now = 15.0  # the update is over, its step is not
    assert watch.read() == {"step": 4.0, "update": 4.0}
    clock.now = 16.0
    assert watch.read() == {"step": 12.0, "update": 4.0}


def test_on_the_host_real_time_is_booked_also_of_what_fails() -> None:
    watch = Stopwatch(HostClock())

    def update(seconds: float) -> str:
        time.sleep(seconds)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), watch.part("step"):
        time.sleep(0.02)
        watch.timed("update", update)(0.05)
    seconds = watch.read()
    assert 0.05 <= seconds["update"] < 0.2 and 0.02 <= seconds["step"] < 0.2


def test_waiting_for_items_is_booked_and_the_source_is_closed() -> None:
    closed = []

    def slow() -> Iterator[int]:
        try:
            for number in range(3):
                time.sleep(0.02)
                yield number
        finally:
            closed.append(True)

    watch = Stopwatch(HostClock())
    seen = []
    for number in watch.waited_for(slow()):
        time.sleep(0.05)
        seen.append(number)
    assert seen == [0, 1, 2] and closed == [True]
    assert 0.06 <= watch.read()["data"] < 0.15
    given = watch.waited_for(slow())
    next(given)
    given.close()  # type: ignore[attr-defined]
    assert closed == [True, True]


def test_the_parts_of_a_run_add_up_to_its_time() -> None:
    seconds = {"data": 2.0, "forward+backward": 70.0, "optimizer": 10.0, "evaluation": 5.0, "saving": 3.0}
    parts = split(seconds, 98.0)
    assert parts == {
        "data": 2.0,
        "forward+backward": 70.0,
        "optimizer": 10.0,
        "waiting": 8.0,
        "evaluation": 5.0,
        "saving": 3.0,
    }
    assert sum(parts.values()) == 98.0
    assert shares_line(parts) == (
        "time: 2% data, 78% forward+backward, 11% optimizer, 9% waiting; beside it 5.0 s evaluation and 3.0 s saving"
    )


def test_a_wait_for_data_that_the_device_computes_through_costs_nothing() -> None:
    parts = split({"data": 30.0, "forward+backward": 80.0, "optimizer": 15.0}, 100.0)
    assert parts == {"data": 5.0, "forward+backward": 80.0, "optimizer": 15.0, "waiting": 0.0}
    assert shares_line(parts) == "time: 5% data, 80% forward+backward, 15% optimizer, 0% waiting"
    assert shares_line(split({}, 0.0)).startswith("time: 0% data")
