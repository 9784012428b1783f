"""What is in a CUDA device's memory at the fullest moment of a training step, by the code that asked for it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

GIB = 2**30
MOST_EVENTS = 400_000
TOP = 24
CHANGES = {"alloc": 1, "free_completed": -1}
"""What an event of the allocator does to the bytes that tensors hold."""
FRAMES = 4
"""Innermost Python functions that say where memory was asked for."""


class Allocations:
    """The batches of a run; what is allocated in the step of number `step`, counted from 0, is recorded."""

    def __init__(self, batches: Any, step: int) -> None:
        self.batches, self.step = batches, step
        self.before = 0
        self._events: list[Mapping[str, Any]] = []

    def iterate(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Stands in for `StoredBatches.iterate`."""
        import torch

        source = self.batches.iterate(*arguments, **options)
        is_recorded = torch.cuda.is_available()
        for index, batch in enumerate(source):
            if is_recorded and index == self.step:
                torch.cuda.synchronize()
                self.before = torch.cuda.memory_allocated()
                torch.cuda.memory._record_memory_history(stacks="python", max_entries=MOST_EVENTS)
            yield batch
        if is_recorded:
            torch.cuda.synchronize()
            self._events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
            torch.cuda.memory._record_memory_history(enabled=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def summary(self) -> dict[str, Any]:
        """{"held_before_gib": at the beginning of the step, "fullest": [[GiB, pieces, where], ...]}; empty on a CPU."""
        if not self._events:
            return {}
        return {"held_before_gib": self.before / GIB, "fullest": at_fullest(self._events)}


def at_fullest(events: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """Of all that `events` (torch.cuda.memory._snapshot) allocate, what is there when most of it is: [GiB, pieces, where].

    What was there before and is freed meanwhile is a negative entry, "from before the step".
    """
    events = [event for event in events if event["action"] in CHANGES]
    totals = list(itertools.accumulate(CHANGES[event["action"]] * event["size"] for event in events))
    until = totals.index(max(totals)) + 1 if totals else 0
    live: dict[int, Mapping[str, Any]] = {}
    freed_before = 0
    for event in events[:until]:
        if event["action"] == "alloc":
            live[event["addr"]] = event
        elif live.pop(event["addr"], None) is None:
            freed_before += event["size"]
    pieces, sizes = Counter[str](), Counter[str]()
    for event in live.values():
        where = _where(event.get("frames", ()))
        sizes[where] += event["size"]
        pieces[where] += 1
    rows = [[size / GIB, pieces[where], where] for where, size in sizes.most_common(TOP)]
    rest = sum(sizes.values()) / GIB - sum(row[0] for row in rows)
    return [*rows, [rest, 0, "the rest"], [-freed_before / GIB, 0, "from before the step"]]


def _where(frames: Iterable[Mapping[str, Any]]) -> str:
    """The innermost functions of Python code."""
    names = [f"{frame['filename'].rpartition('/')[2]}:{frame['line']} {frame['name']}" for frame in frames]
    return " < ".join(names[:FRAMES])
