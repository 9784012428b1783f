"""Signs of life between hosts, through the store that torch.distributed has anyway.

Every rank counts up a number of its own and watches the numbers of others; clocks are never compared. The first rank of
a host watches every rank, the others the first rank of each host, which keeps the store's work small.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from torch.distributed import Store  # type: ignore[attr-defined]

from toolkit.errors import HostLost, show

FAILED, LEFT = "failed", "left"
SHORTEST_S, LONGEST_S = 1.0, 5.0
GRACE_S = 2.0
"""So long the main thread may take to come out of a collective by itself before its process is ended for it."""
FAREWELL_S = 30.0
"""So long rank 0, which holds the store, waits at the end for ranks that have not left yet; the others for its answer."""


class Heartbeat:
    """The watch of one rank. `hosts`: name and ranks of each; `timeout_s`: silence that counts as death."""

    def __init__(self, store: Store, rank: int, hosts: Sequence[tuple[str, Sequence[int]]], timeout_s: float) -> None:
        self._store, self._rank, self._hosts, self._timeout_s = store, rank, hosts, timeout_s
        self._interval_s = min(LONGEST_S, max(SHORTEST_S, timeout_s / 12))
        leaders = [ranks[0] for _, ranks in hosts]
        everyone = [other for _, ranks in hosts for other in ranks]
        self._world_size = len(everyone)
        self._watched = [other for other in (everyone if rank in leaders else leaders) if other != rank]
        self._patience_s = timeout_s
        self._seconds_unanswered = 0
        self._lost: HostLost | None = None
        self._found, self._stopped, self._taken_over = threading.Event(), threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._guard)]

    @staticmethod
    def prepare(store: Store, rank: int) -> None:
        """Make the keys that other ranks will read: reading one that is not there would block them."""
        store.set(_beat_of(rank), "0")
        if rank == 0:
            store.set(FAILED, "")

    def start(self) -> None:
        """Begin, once every rank has prepared."""
        for thread in self._threads:
            thread.start()

    def take_over(self) -> None:
        """From here on the main thread says what happened; the watch only finds out."""
        self._taken_over.set()

    def whose_fault(self) -> HostLost | None:
        """After a broken collective: the host or rank that broke it, or None when all of them are alive and well.

        Together with the breakage a short silence is proof enough.
        """
        self._patience_s = min(self._timeout_s, 3 * self._interval_s)
        self._found.wait(self._patience_s + 2 * self._interval_s)
        return self._lost

    def tell(self, reason: str) -> None:
        """Leave word why this rank ends. The first one's word stays; the others end with it in their message."""
        self._stopped.set()
        word = f"{self._rank} {reason.strip().splitlines()[0]}"

        def leave_word() -> None:
            self._store.compare_set(FAILED, "", word)
            # The store may end with this process, and the word with it.
            time.sleep(self._interval_s + 0.5)

        _for_at_most(2 * self._interval_s + GRACE_S, leave_word)

    def leave(self) -> None:
        """End the watch after a run that went well. Rank 0 waits for the others, whose watch needs its store."""
        self._taken_over.set()
        self._stopped.set()

        def say_goodbye() -> None:
            left = self._store.add(LEFT, 1)
            while self._rank == 0 and left < self._world_size:
                time.sleep(0.1)
                left = self._store.add(LEFT, 0)

        _for_at_most(FAREWELL_S, say_goodbye)

    def _beat(self) -> None:
        """Show a sign of life and read those of the others, until one is missing."""
        keys = [FAILED, *map(_beat_of, self._watched)]
        seen: dict[int, bytes] = {}
        changed = dict.fromkeys(self._watched, time.monotonic())
        number = 0
        while not self._stopped.is_set() and self._lost is None:
            number += 1
            try:
                self._store.set(_beat_of(self._rank), str(number))
                failed, *beats = self._store.multi_get(keys)
            except RuntimeError:
                self._find(self._store_lost("closed the connection: its processes have ended"))
                return
            self._seconds_unanswered = 0
            now = time.monotonic()
            for other, beat in zip(self._watched, beats, strict=True):
                if seen.get(other) != beat:
                    seen[other], changed[other] = beat, now
            if failed:
                self._find(self._told(failed.decode()))
            elif now - min(changed.values()) > self._patience_s:
                self._find(self._silent({other: now - since for other, since in changed.items()}))
            self._stopped.wait(self._interval_s)

    def _guard(self) -> None:
        """End the process when something was found and the main thread is stuck; find out when the store is silent."""
        while not self._found.wait(1.0):
            if self._stopped.is_set():
                return
            # Counted, not measured: a process that was stopped for an hour has not listened for an hour.
            self._seconds_unanswered += 1
            if self._seconds_unanswered > self._patience_s:
                self._find(self._store_lost(f"has not answered for {self._seconds_unanswered} s"))
        if not self._taken_over.wait(GRACE_S) and self._lost is not None:
            # The main thread waits in a collective that never returns, where no exception can reach it.
            code = show(self._lost)
            sys.stdout.flush()
            os._exit(code)

    def _find(self, lost: HostLost) -> None:
        if not self._stopped.is_set() and self._lost is None:
            self._lost = lost
            self._found.set()

    def _silent(self, silence_s: dict[int, float]) -> HostLost:
        # One host's ranks fall silent within one interval of each other.
        limit = self._patience_s - 1.5 * self._interval_s
        gone = [rank for rank, seconds in silence_s.items() if seconds > limit]
        longest = max(silence_s.values())
        hosts = [name for name, ranks in self._hosts if ranks[0] in gone]
        ranks = [f"rank {rank} on {self._host_of(rank)}" for rank in gone]
        what = f"host {' and host '.join(hosts)}" if hosts else " and ".join(ranks)
        return self._error(f"{what}: no sign of life for {longest:.0f} s")

    def _told(self, word: str) -> HostLost:
        rank, _, reason = word.partition(" ")
        return self._error(f"host {self._host_of(int(rank))}: rank {rank} failed: {reason}")

    def _store_lost(self, how: str) -> HostLost:
        return self._error(f"host {self._hosts[0][0]}, where rank 0 runs, {how}")

    def _host_of(self, rank: int) -> str:
        return next(name for name, ranks in self._hosts if rank in ranks)

    def _error(self, what: str) -> HostLost:
        return HostLost(
            what,
            expected=f"all {len(self._hosts)} hosts until the end; launch.host_timeout_s={self._timeout_s:.0f} is the patience",
            do="look at that host and its output, then start the same command again with --resume auto",
        )


def _for_at_most(seconds: float, action: Callable[[], None]) -> None:
    """Run `action`, which asks the store; a store whose host has vanished would keep the caller for ever."""

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)


def _beat_of(rank: int) -> str:
    return f"beat/{rank}"
