"""Taking a run's folder for all its ranks: held by rank 0, and seen to be one folder on every host."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.checkpoint.durable import VISIBLE_S
from toolkit.engine import process
from toolkit.errors import LaunchError
from toolkit.storage import storage_errors
from toolkit.train.run_lock import RunLock


@contextmanager
def claimed(folder: Path, me: process.Process) -> Iterator[None]:
    """Hold `folder` for this run until the context ends. Collective.

    Raises LaunchError on every rank when another run has it, or when some ranks do not see what rank 0 writes there.
    """
    lock = RunLock(folder)

    def take() -> None:
        if me.is_main:
            with storage_errors("taking the run folder", folder):
                lock.take()

    process.agree(take)
    try:
        check_shared(folder, me)
        yield
    finally:
        lock.release()


def check_shared(folder: Path, me: process.Process, wait_s: float = VISIBLE_S) -> None:
    """Raise LaunchError on every rank when one of them does not see in `folder` what rank 0 writes there. Collective."""
    if me.world_size == 1:
        return
    token = folder / process.gather_objects(f".seen-{secrets.token_hex(8)}")[0]
    if me.is_main:
        token.touch()
    names = process.gather_objects(socket.gethostname())
    # A host that has looked for the folder before it was there remembers that it is not; making it asks anew. A rank that
    # cannot is told below that it does not see it.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    while not (is_seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [rank for rank, seen in enumerate(process.gather_objects(is_seen)) if not seen]
    if me.is_main:
        token.unlink(missing_ok=True)
    if blind:
        more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
        raise LaunchError(
            f"--output_dir {folder} is not one folder: rank {blind[0]} on {names[blind[0]]}{more} does not see what "
            f"rank 0 on {names[0]} writes there",
            expected="a folder that all hosts share: a checkpoint is made of a file of each rank",
            do="pass an --output_dir on a file system that all hosts mount at the same path (NFS, Lustre, ...)",
        )
