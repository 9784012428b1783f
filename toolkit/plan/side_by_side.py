"""Independent work in processes that are forked off this one: Python runs one thread at a time."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

T = TypeVar("T")


def usable_cores() -> int:
    """Cores of this host that this process may use; 1 where processes cannot be forked safely."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def side_by_side(tasks: Sequence[Callable[[], T]], cores: int) -> list[T]:
    """What each of `tasks` returns, in their order, on as many `cores` as there are tasks for.

    What does not come back from a fork is done here, which shows why: a task failed, or a fork was killed, or torch does
    not go backward in a fork of a process that has done so itself.
    """
    count = min(cores, len(tasks))
    found = _forked(tasks, count) if count > 1 else {}
    return [found[index] if index in found else task() for index, task in enumerate(tasks)]


def _forked(tasks: Sequence[Callable[[], T]], count: int) -> dict[int, T]:
    context = multiprocessing.get_context("fork")
    tickets = _tickets(len(tasks))
    forks = []
    for _ in range(count):
        receiver, sender = context.Pipe(duplex=False)
        fork = context.Process(target=_work, args=(tasks, tickets, sender), daemon=True)
        fork.start()
        sender.close()
        forks.append((fork, receiver))
    os.close(tickets)
    found: dict[int, T] = {}
    for fork, receiver in forks:
        with receiver, suppress(EOFError):  # killed
            found |= receiver.recv()
        fork.join()
    return found


def _tickets(count: int) -> int:
    """A pipe with the numbers of `count` tasks: whoever is free reads the next, since tasks differ in length."""
    reader, writer = os.pipe()
    os.write(writer, array("I", range(count)).tobytes())
    os.close(writer)
    return reader


def _work(tasks: Sequence[Callable[[], T]], tickets: int, sender: Connection) -> None:
    # Another thread of the parent may have held a stream's lock. What there is to say, the parent says.
    sys.stdout = sys.stderr = io.StringIO()
    torch.set_num_threads(1)
    found = {}
    while ticket := os.read(tickets, array("I").itemsize):
        (index,) = array("I", ticket)
        with suppress(Exception):  # the parent meets it, too
            found[index] = tasks[index]()
    sender.send(found)
