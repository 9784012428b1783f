"""Meeting the ranks of other hosts: who is where, over which interface, and who is not there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.distributed import run_distributed
from toolkit.engine import hosts
from toolkit.engine.hosts import Place, check_agreement, group, interface_towards, source_address, watched
from toolkit.engine.process import Process
from toolkit.errors import LaunchError
from toolkit.recipe.mesh import Mesh


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What a launcher sets for rank 0 of two hosts; yields the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)
    for name in ("GLOO_SOCKET_IFNAME", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    yield port


def place(rank: int, world_size: int, local_world_size: int) -> Process:
    return Process(rank, world_size, 0, local_world_size, Mesh(data=world_size))


def test_hosts_begin_at_local_rank_0() -> None:
    places = [Place("a", "10.0.0.1", 0), Place("a", "10.0.0.1", 1), Place("b", "10.0.0.2", 0), Place("c", "10.0.0.3", 0), Place("c", "10.0.0.3", 1)]  # fmt: skip
    assert [(str(host), list(host.ranks)) for host in group(places)] == [("a (10.0.0.1)", [0, 1]), ("b (10.0.0.2)", [2]), ("c (10.0.0.3)", [3, 4])]  # fmt: skip


def test_interface_on_the_route() -> None:
    interfaces = {name: [entry.address for entry in entries] for name, entries in psutil.net_if_addrs().items()}
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1", interfaces, loopback=True) == "lo"
    # gloo would bind itself to 127.0.0.1 and wait there for ever.
    assert interface_towards("127.0.0.1", interfaces, loopback=False) is None
    assert interface_towards("no-such-host.invalid", interfaces, loopback=True) is None
    with pytest.raises(LaunchError, match=r"has no way to no-such-host\.invalid"):
        source_address("no-such-host.invalid")


def test_a_rank_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(hosts, "PATIENCE_S", 0.2)
    with pytest.raises(LaunchError) as failure, watched(place(0, 3, 1), timeout_s=1, host_timeout_s=9, say=said.append):  # fmt: skip
        pytest.fail("met nobody")
    assert said == ["waiting for ranks 1-2 of 3 (1 s at most)"]
    assert failure.value.what == f"ranks 1-2 of 3 did not start within launch.timeout_s=1; those of {socket.gethostname()} (127.0.0.1) did"  # fmt: skip


def test_a_first_host_that_is_not_there(launched: int) -> None:
    with pytest.raises(LaunchError) as failure, watched(place(1, 2, 1), timeout_s=1, host_timeout_s=9, say=print):
        pytest.fail("met nobody")
    assert failure.value.what.startswith(
        f"rank 1 on {socket.gethostname()} cannot reach MASTER_ADDR=127.0.0.1, MASTER_PORT={launched} ("
    )


def test_a_port_in_use(launched: int) -> None:
    with (
        socket.create_server(("127.0.0.1", launched)),
        pytest.raises(LaunchError, match=f"port {launched} on 127.0.0.1 is in use"),
        watched(place(0, 2, 1), timeout_s=1, host_timeout_s=9, say=print),
    ):
        pytest.fail("met nobody")


def test_one_host_is_not_watched() -> None:
    said: list[str] = []
    with watched(place(0, 2, 2), timeout_s=1, host_timeout_s=1, say=said.append):
        pass
    assert said == []


def test_an_interface_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth99")
    pair = group([Place("a", "127.0.0.1", 0), Place("b", "127.0.0.1", 0)])
    with pytest.raises(LaunchError) as failure:
        hosts._choose_interface(pair, 0)
    assert failure.value.what == f"GLOO_SOCKET_IFNAME=eth99 on {socket.gethostname()}"
    assert ", ".join(psutil.net_if_addrs()) in failure.value.expected
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,lo")
    assert hosts._choose_interface(pair, 0) == "lo,lo, because GLOO_SOCKET_IFNAME says so"


def agree(rank: int, world_size: int, configs: list[dict[str, Any]]) -> str:
    try:
        check_agreement(place(rank, world_size, 1), configs[rank])
    except LaunchError as error:
        return error.what
    return ""


def test_hosts_that_render_different_configurations() -> None:
    one: dict[str, Any] = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    assert run_distributed(agree, 2, [one, one]) == ["", ""]
    host = socket.gethostname()
    expected = f"host {host} renders another configuration than host {host}: bf16.enabled=None (there True)"
    assert run_distributed(agree, 2, [one, {"zero_optimization": {"stage": 2}}]) == [expected, expected]


WAITS_FOR_A_RANK_THAT_DIES = """
import os, sys
import torch
import torch.distributed as dist
from toolkit.cli.output import exit_code_of
from toolkit.engine import process
from toolkit.engine.hosts import watched

def run():
    me = process.from_environment()
    with watched(me, timeout_s=60, host_timeout_s=60, say=print):
        dist.init_process_group("gloo")
        try:
            dist.all_reduce(torch.ones(1))
            if me.rank == 1:
                os._exit(9)
            dist.all_reduce(torch.ones(1))
        finally:
            process.stop()  # as a run does: gloo aborts where a broken group is left to the end of the process
    return 0

sys.exit(exit_code_of(run))
"""


def test_a_rank_that_dies_is_said_and_no_traceback_shown(launched: int) -> None:
    """What the others meet is a broken connection somewhere in gloo."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WAITS_FOR_A_RANK_THAT_DIES],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 9], said
    assert "error: another process of this run has ended, and the others cannot go on without it\n" in said[0]
    assert "continue with --resume auto" in said[0] and "Traceback" not in said[0]


TWO_RUNS_ALONE = """
import os, torch.distributed as dist
from toolkit.engine import process

for _ in range(2):
    process.start(process.from_environment())
    assert dist.get_world_size() == 1
    process.stop()
    assert [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")] == [None, None, "29999"]
"""


def test_a_lone_rank_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started from it, or after it in the same process, is no rank of a launcher, and shares no port with it."""
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("MASTER_PORT", "29999")
    done = subprocess.run([sys.executable, "-c", TWO_RUNS_ALONE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
