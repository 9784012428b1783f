"""Which interface NCCL and gloo take: hosts with networks that this one does not have, and the probe of this one."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from toolkit.doctor import host_probe
from toolkit.doctor.check_interfaces import Interface, Network, check_gloo, check_nccl, nccl_choice

LO = Interface("lo", ("127.0.0.1", "::1"))
ETH = Interface("eth0", ("10.0.0.5",))
SECOND = Interface("eth1", ("192.168.3.4",))
IB = Interface("ib0", ("10.1.0.5",))
DOCKER = Interface("docker0", ("172.17.0.1",))
BRIDGE = Interface("br-4f2a", ("172.18.0.1",))
VIRBR = Interface("virbr0", ("192.168.122.1",))
DOWN = Interface("eno9", ("10.9.0.1",), up=False)
BARE = Interface("eno8", ())


def network(*interfaces: Interface, resolves: tuple[str, ...] | None = ("10.0.0.5",), route: str = "eth0") -> Network:
    return Network("node1", resolves, (LO, *interfaces), route)


@pytest.mark.parametrize(
    ("interfaces", "setting", "names"),
    [
        ((LO, DOCKER, ETH, IB), "", ["ib0"]),
        ((LO, DOCKER, VIRBR, DOWN, BARE, ETH, SECOND), "", ["eth0", "eth1"]),
        ((LO, DOCKER), "", ["docker0"]),
        ((LO, VIRBR), "", ["lo"]),
        ((LO, BRIDGE, ETH), "", ["br-4f2a", "eth0"]),
        ((LO, ETH, SECOND), "eth", ["eth0", "eth1"]),
        ((LO, ETH, SECOND), "=eth", []),
        ((LO, ETH, SECOND), "=eth1", ["eth1"]),
        ((LO, DOCKER, ETH), "^docker,lo", ["eth0"]),
        ((LO, DOCKER, ETH), "^=lo", ["docker0", "eth0"]),
        ((LO, ETH, SECOND), "eno1,eth1", ["eth1"]),
        ((LO, DOWN), "eno9", []),
    ],
)
def test_what_nccl_takes(interfaces: tuple[Interface, ...], setting: str, names: list[str]) -> None:
    assert [one.name for one in nccl_choice(interfaces, setting)] == names


def test_nccl_over_the_route_to_the_others() -> None:
    finding = check_nccl(network(DOCKER, ETH, SECOND), "", has_gpu=True)
    assert (finding.status, finding.found) == ("ok", "eth0 (10.0.0.5), before eth1")
    assert check_nccl(network(DOCKER, IB, ETH), "", has_gpu=True).found == "ib0 (10.1.0.5)"


def test_nccl_that_would_take_a_bridge() -> None:
    finding = check_nccl(network(BRIDGE, ETH), "", has_gpu=True)
    assert finding.status == "warn"
    assert finding.found == (
        "br-4f2a (172.18.0.1), before eth0; the route to other hosts goes over eth0 (10.0.0.5): runs on several hosts may not meet"
    )
    assert finding.fix == "export NCCL_SOCKET_IFNAME=eth0"
    assert "wait in vain" in finding.why
    chosen = check_nccl(network(BRIDGE, ETH), "eth0", has_gpu=True)
    assert (chosen.status, chosen.found) == ("ok", "eth0 (10.0.0.5), because NCCL_SOCKET_IFNAME says so")
    without = check_nccl(network(BRIDGE, ETH), "", has_gpu=False)
    assert without.status == "ok" and without.found.endswith("no GPU is here, so that NCCL is not used")


def test_nccl_that_is_sent_to_an_interface_that_is_not_there() -> None:
    absent = check_nccl(network(ETH), "ens3", has_gpu=True)
    assert absent.found == "NCCL_SOCKET_IFNAME=ens3 matches no interface: this host has lo, eth0"
    assert (absent.status, absent.fix) == ("fail", "unset NCCL_SOCKET_IFNAME, or export NCCL_SOCKET_IFNAME=eth0")
    down = check_nccl(network(DOWN, ETH), "eno9", has_gpu=True)
    assert down.found == "NCCL_SOCKET_IFNAME=eno9 matches no interface: eno9 is down or has no address"
    assert check_nccl(network(ETH), "ens3", has_gpu=False).status == "warn"


def test_a_host_without_any_network() -> None:
    alone = Network("node1", (), (Interface("lo", ()),))
    assert check_nccl(alone, "", has_gpu=True).found.startswith("no interface has an address")
    assert check_gloo(alone, "").fix.endswith("export GLOO_SOCKET_IFNAME=an interface towards the other hosts")


def test_a_name_that_stands_for_this_host() -> None:
    finding = check_gloo(network(ETH), "")
    assert (finding.status, finding.found) == ("ok", "this host's name stands for 10.0.0.5 (eth0)")


def test_a_name_that_stands_for_loopback() -> None:
    finding = check_gloo(network(ETH, resolves=("127.0.1.1",)), "")
    assert finding.status == "ok"
    assert finding.found == (
        "this host's name stands for 127.0.1.1 (lo); runs on several hosts take the route between them, "
        "other programs need: export GLOO_SOCKET_IFNAME=eth0"
    )


def test_a_name_that_stands_for_nothing_here() -> None:
    cure = "echo '10.0.0.5 node1' | sudo tee -a /etc/hosts; or export GLOO_SOCKET_IFNAME=eth0"
    stale = check_gloo(network(ETH, resolves=("10.7.7.7",)), "")
    assert stale.found == "this host's name node1 stands for 10.7.7.7, which is no address of this host"
    assert (stale.status, stale.fix) == ("warn", f"correct that line: {cure}")
    unknown = check_gloo(network(ETH, resolves=()), "")
    assert (unknown.found, unknown.fix) == ("this host's name node1 does not resolve", cure)
    slow = check_gloo(network(ETH, resolves=None), "")
    assert (slow.found, slow.fix) == ("this host's name node1 is looked up for seconds without an answer", cure)
    assert all("meet where nobody is" in one.why for one in (stale, unknown, slow))


def test_gloo_by_the_variable() -> None:
    assert check_gloo(network(ETH, SECOND), "eth0,eth1").found == "eth0,eth1, because GLOO_SOCKET_IFNAME says so"
    wrong = check_gloo(network(ETH, DOWN), "eno9")
    assert wrong.found == ("GLOO_SOCKET_IFNAME=eno9, and eno9 is no interface of this host that is up: eth0, lo are")
    assert (wrong.status, wrong.fix) == ("fail", "unset GLOO_SOCKET_IFNAME, or export GLOO_SOCKET_IFNAME=eth0")


def test_the_probe_of_this_host() -> None:
    answer = json.loads(json.dumps(host_probe.network()))
    found = Network.of(answer)
    assert found.name == socket.gethostname()
    assert any(one.is_loopback for one in found.interfaces)
    assert found.route in ("", *(one.name for one in found.interfaces))
    assert check_gloo(found, "lo").status == "ok"


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [][: never.wait(20)])
    monkeypatch.setattr(host_probe, "RESOLVE_S", 0.1)
    began = time.perf_counter()
    assert host_probe.network()["resolves"] is None
    assert time.perf_counter() - began < 5
    never.set()
