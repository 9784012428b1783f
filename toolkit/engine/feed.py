"""Micro-batches on their way to the device: pinned, on a stream of their own, one ahead of the one that computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from toolkit.engine import device
from toolkit.engine.protocol import Batch
from toolkit.models.attention import is_lengths


def on_device(batch: Batch) -> Batch:
    """`batch` on this rank's device, at once; lengths of documents stay on the CPU, so that reading them waits for nothing."""
    return {name: values if is_lengths(name) else values.to(device.current()) for name, values in batch.items()}


class Feed:
    """Copies batches to this rank's device while others compute there; on a CPU device it hands them on."""

    def __init__(self) -> None:
        self._stream: Any = torch.cuda.Stream() if device.kind() == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Each of `batches` on the device; the copy of the next one has begun before one is given out."""
        if self._stream is None:
            yield from batches
            return
        before: tuple[Batch, Any] | None = None
        for batch in batches:
            begun = self._begin(batch)
            if before is not None:
                yield _arrived(*before)
            before = begun
        if before is not None:
            yield _arrived(*before)

    def _begin(self, batch: Batch) -> tuple[Batch, Any]:
        """The batch on its way, and the event that marks its arrival. From memory that is not pinned a copy would wait."""
        with torch.cuda.stream(self._stream):
            moved = {
                name: values if is_lengths(name) else values.pin_memory().to(device.current(), non_blocking=True)
                for name, values in batch.items()
            }
            return moved, self._stream.record_event()


def _arrived(batch: Batch, event: Any) -> Batch:
    """`batch`, for work queued from now on."""
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for name, values in batch.items():
        if not is_lengths(name):
            # Allocated on the other stream: its memory must not be given away before this one has used it.
            values.record_stream(stream)
    return batch
