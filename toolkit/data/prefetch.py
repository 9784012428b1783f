"""Run an iterator ahead of its reader in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class _End:
    error: BaseException | None = None


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, up to `depth` of them computed ahead of time; 0: none, everything runs in the caller's thread.

    An exception in `items` is raised here, at its place. Closing this generator ends the thread.
    """
    if depth < 1:
        yield from items
        return
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    closed = threading.Event()
    worker = threading.Thread(target=_fill, args=(items, ready, closed), name="prefetch", daemon=True)
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        closed.set()
        worker.join()


def _fill(items: Iterator[Item], ready: queue.Queue[Item | _End], closed: threading.Event) -> None:
    end = _End()
    try:
        for item in items:
            if not _put(item, ready, closed):
                break
    except BaseException as error:
        end = _End(error)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    _put(end, ready, closed)


def _put(item: Item | _End, ready: queue.Queue[Item | _End], closed: threading.Event) -> bool:
    """Wait for room, giving up once the reader has gone: then False."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
