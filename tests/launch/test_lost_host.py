"""Two "hosts" on one machine, no root needed: what a rank that is stuck in a collective says and does when the other is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIMEOUT_S = 100
HOST_TIMEOUT_S = 5

SCRIPT = f"""
import sys
import torch
import torch.distributed as dist
from toolkit.cli.output import exit_code_of
from toolkit.engine import hosts, process

def work():
    me = process.from_environment()
    with hosts.watched(me, timeout_s=60, host_timeout_s={HOST_TIMEOUT_S}, say=lambda text: None):
        process.start(me)
        total = torch.ones(1)
        while True:
            dist.all_reduce(total)
            print("reduced", flush=True)
            if me.rank == 1 and "raise" in sys.argv:
                raise KeyError("a fault")

sys.exit(exit_code_of(work))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "work.py"
    file.write_text(SCRIPT)
    return file


def start(script: Path, *flags: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    own = {"LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return [
        subprocess.Popen(
            [sys.executable, str(script), *flags],
            env={**os.environ, **shared, **own, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finish(ranks: list[subprocess.Popen[str]], survivor: int) -> str:
    """What the surviving rank wrote to standard error."""
    try:
        return ranks[survivor].communicate(timeout=TIMEOUT_S)[1]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.mark.parametrize(
    ("victim", "number", "said"),
    [
        (1, signal.SIGSTOP, r"no sign of life for \d+ s"),
        (1, signal.SIGKILL, r"no sign of life for \d+ s"),
        (0, signal.SIGSTOP, r"where rank 0 runs, has not answered for \d+ s"),
        (0, signal.SIGKILL, r"where rank 0 runs, closed the connection: its processes have ended"),
    ],
    ids=["frozen", "killed", "frozen-first", "killed-first"],
)
def test_the_other_host_is_named(victim: int, number: int, said: str, script: Path) -> None:
    ranks = start(script)
    out = ranks[victim].stdout
    assert out is not None and out.readline() == "reduced\n"
    ranks[victim].send_signal(number)
    struck_at = time.monotonic()
    message = finish(ranks, survivor=1 - victim)
    assert time.monotonic() - struck_at < HOST_TIMEOUT_S + 10
    assert ranks[1 - victim].returncode == 1
    who = "" if victim == 1 else r" \[rank 1\]"
    first, *rest = message.splitlines()
    assert re.fullmatch(rf"error{who}: host {socket.gethostname()} \(127\.0\.0\.1\)[:,] {said}", first), message
    assert [line.split(":")[0].strip() for line in rest] == ["expected", "do this"]


def test_a_fault_on_another_host_is_quoted(script: Path) -> None:
    message = finish(start(script, "raise"), survivor=0)
    assert f"error: host {socket.gethostname()} (127.0.0.1): rank 1 failed: KeyError 'a fault'\n" in message
    assert "Traceback" not in message
