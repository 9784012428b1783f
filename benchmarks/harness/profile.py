"""Which kernels take the time of some training steps, and how long the device waits for work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

TOP = 10


class Profiled:
    """The batches of a run; the steps that they go into are recorded from `first_step` on, the last one left out."""

    def __init__(self, batches: Any, first_step: int, device: str) -> None:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        self.batches, self.first_step = batches, first_step
        on_cuda = device == "cuda"
        self._kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        self._profile = profile(activities=activities)

    def iterate(self, start_step: int, stop_step: int, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Stands in for `StoredBatches.iterate`."""
        from toolkit.engine import device

        source = self.batches.iterate(start_step, stop_step, *arguments, **options)
        # The loop does more after the last step than after the others.
        turns = {self.first_step: self._profile.start, stop_step - start_step - 1: self._profile.stop}
        for index, batch in enumerate(source):
            if index in turns:
                device.synchronize()
                turns[index]()
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def summary(self) -> dict[str, Any]:
        """The kernels (on a CPU: operators) that took most of the recorded time, and the share in which none ran."""
        events = [
            event
            for event in self._profile.events()
            # Of operators inside operators the outermost; kernels have none around them.
            if event.device_type == self._kind
            and event.cpu_parent is None
            and not getattr(event, "is_user_annotation", False)
        ]
        return summarised((event.name, event.time_range.start, event.time_range.end) for event in events)


def summarised(spans: Iterable[tuple[str, float, float]]) -> dict[str, Any]:
    """`spans` are (name, start, end), microseconds, and may overlap: {"top": [name, calls, ms, share], "idle": share}."""
    known = sorted(spans, key=lambda span: span[1])
    if not known:
        return {"top": [], "idle": None}
    totals: dict[str, list[float]] = {}
    busy, reached = 0.0, known[0][1]
    for name, start, end in known:
        total = totals.setdefault(name, [0, 0.0])
        total[0] += 1
        total[1] += end - start
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = sum(took for _, took in totals.values())
    top = sorted(totals.items(), key=lambda item: -item[1][1])[:TOP]
    rows = [[name[:80], int(calls), took / 1000, took / whole] for name, (calls, took) in top]
    return {"top": rows, "idle": 1.0 - busy / (reached - known[0][1])}
