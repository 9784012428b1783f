"""Start a benchmark's own script as several ranks, each a fresh process, and hand back what each measured.

Fresh processes, so that the peak memory of one measurement is not that of the one before.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = "BENCHMARK_RESULT"
"""Environment variable of a rank: the file its result belongs in."""


class RankFailed(RuntimeError):
    """A rank ended with an error; the message holds what it printed."""


def is_rank() -> bool:
    """Whether this process was started by `measure`."""
    return RESULT in os.environ


def report(value: Any) -> None:
    """Called in a rank: hand `value` (JSON-able) to the process that started it."""
    Path(os.environ[RESULT]).write_text(json.dumps(value), encoding="utf-8")


def shared_folder() -> Path:
    """Called in a rank: a temporary folder that all ranks see and that goes when they are done."""
    return Path(os.environ[RESULT]).parent


def default_world_size() -> int:
    """One rank per GPU, or two ranks on a CPU."""
    import torch

    return torch.cuda.device_count() or 2


def measure(script: str, arguments: Sequence[str], world_size: int, *, timeout_s: float = 1800.0) -> list[Any]:
    """What each of `world_size` ranks of `python script *arguments` reported, in rank order."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        port = _free_port()
        ranks = [_start(script, arguments, rank, world_size, port, Path(folder)) for rank in range(world_size)]
        try:
            _wait(ranks, Path(folder), time.monotonic() + timeout_s)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        return [json.loads(_result(Path(folder), rank).read_text(encoding="utf-8")) for rank in range(world_size)]


def _start(
    script: str, arguments: Sequence[str], rank: int, world_size: int, port: int, folder: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        RESULT: str(_result(folder, rank)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with _log(folder, rank).open("wb") as log:
        command = [sys.executable, script, *arguments]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    """Return when every rank has succeeded; raise RankFailed as soon as one has failed, or at the deadline."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = next((number for number, code in enumerate(codes) if code), None)
        late = time.monotonic() > deadline and None in codes
        if failed is not None or late:
            number = failed if failed is not None else codes.index(None)
            what = "was not done in time" if failed is None else f"ended with exit code {codes[number]}"
            time.sleep(1.0)  # the cause may be in another rank, which is still writing
            printed = (_log(folder, other).read_text(errors="replace")[-4000:] for other in range(len(ranks)))
            logs = "\n".join(f"rank {other} printed\n{text}" for other, text in enumerate(printed))
            raise RankFailed(f"rank {number} {what}\n{logs}")
        if None not in codes:
            return
        time.sleep(0.05)


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
