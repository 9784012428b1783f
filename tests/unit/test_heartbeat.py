"""The watch over other hosts: silence, last words, a store that is gone; and that a good run ends in peace."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from toolkit.engine.heartbeat import Heartbeat
from toolkit.errors import HostLost

HOSTS = [("a (10.0.0.1)", range(2)), ("b (10.0.0.2)", range(2, 4))]
TIMEOUT_S = 3.0


@pytest.fixture
def watch() -> Callable[[int], Heartbeat]:
    """Makes the watch of a rank, with a connection of its own; its main thread will speak for it."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in range(4):
        Heartbeat.prepare(server, rank)

    def make(rank: int) -> Heartbeat:
        heartbeat = Heartbeat(connection(server.port), rank, HOSTS, TIMEOUT_S)
        heartbeat.take_over()
        return heartbeat

    make.server = server  # type: ignore[attr-defined]  # lives as long as the fixture
    return make


def connection(port: int) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))


def started(watch: Callable[[int], Heartbeat], *ranks: int) -> list[Heartbeat]:
    watches = [watch(rank) for rank in ranks]
    for one in watches:
        one.start()
    return watches


def test_nobody_is_to_blame(watch: Callable[[int], Heartbeat]) -> None:
    watches = started(watch, 0, 1, 2, 3)
    assert [one.whose_fault() for one in watches[:2]] == [None, None]
    leaving = [threading.Thread(target=one.leave) for one in watches]
    began = time.monotonic()
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join()
    assert time.monotonic() - began < 2.0


def test_a_silent_host(watch: Callable[[int], Heartbeat]) -> None:
    first, second = started(watch, 0, 1)
    for one in (first, second):
        lost = one.whose_fault()
        assert isinstance(lost, HostLost)
        assert re.fullmatch(r"host b \(10.0.0.2\): no sign of life for \d s", lost.what)
        assert lost.expected == "all 2 hosts until the end; launch.host_timeout_s=3 is the patience"
        assert lost.exit_code == 1


def test_a_silent_rank(watch: Callable[[int], Heartbeat]) -> None:
    first, *_ = started(watch, 0, 1, 2)
    lost = first.whose_fault()
    assert lost is not None
    assert re.fullmatch(r"rank 3 on b \(10.0.0.2\): no sign of life for \d s", lost.what)


def test_last_words(watch: Callable[[int], Heartbeat]) -> None:
    first, _, other, last = started(watch, 0, 1, 2, 3)
    last.tell("OutOfMemoryError tried to allocate\nmany lines of it")
    other.tell("RuntimeError connection closed by peer")
    lost = first.whose_fault()
    assert lost is not None
    assert lost.what == "host b (10.0.0.2): rank 3 failed: OutOfMemoryError tried to allocate"


SERVER = (
    "import sys, time, torch.distributed as dist\n"
    "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
    "print(store.port, flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(
    ("number", "said"), [("KILL", r"closed the connection: its processes have ended"), ("STOP", r"has not answered for \d s")]
)  # fmt: skip
def test_the_host_of_the_store(number: str, said: str) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        store = connection(int(server.stdout.readline()))
        for rank in range(4):
            Heartbeat.prepare(store, rank)
        heartbeat = Heartbeat(store, 2, HOSTS, TIMEOUT_S)
        heartbeat.take_over()
        heartbeat.start()
        subprocess.run(["kill", f"-{number}", str(server.pid)], check=True)
        lost = heartbeat.whose_fault()
        assert lost is not None
        assert re.fullmatch(rf"host a \(10.0.0.1\), where rank 0 runs, {said}", lost.what)
        # A store that does not answer keeps nobody.
        began = time.monotonic()
        heartbeat.tell("RuntimeError")
        assert time.monotonic() - began < 6.0
    finally:
        server.kill()
        server.wait()
