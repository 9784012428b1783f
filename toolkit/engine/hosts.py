"""Several hosts: who runs where, which network interface they meet over, and the watch over them until the run ends."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from toolkit.engine.heartbeat import Heartbeat
from toolkit.engine.process import Process, check_rendezvous, gather_objects
from toolkit.errors import LaunchError, RankLost, ToolkitError

INTERFACE = "GLOO_SOCKET_IFNAME"
NAMED_HOSTS = 4
"""So many hosts are listed by name at the start; more would only scroll by."""
PATIENCE_S = 20.0
"""After so long, rank 0 says whom it is waiting for."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    host: str
    address: str
    """The one it has towards MASTER_ADDR."""
    local_rank: int


@dataclass(frozen=True)
class Host:
    """A host of the run."""

    name: str
    address: str
    ranks: range

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


@contextlib.contextmanager
def watched(me: Process, *, timeout_s: float, host_timeout_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Meet the ranks of the other hosts, and see to it until the block ends that none of them is waited for in vain.

    Waits `timeout_s` for all ranks. A host that then gives no sign of life for `host_timeout_s` ends this process with a
    message that names it: by raising HostLost here, or on the spot where a collective would never return. On one host
    the launcher ends every process when one has died; RankLost is raised where a collective learns of it before. Raises
    LaunchError when ranks do not come.
    """
    if not me.spans_hosts:
        with _rank_loss():
            yield
        return
    check_rendezvous(me)
    store = _store(me, timeout_s)
    places = _meet(store, me, timeout_s, say)
    hosts = group(places)
    interface = _choose_interface(hosts, me.rank)
    say(_describe(hosts, interface))
    heartbeat = Heartbeat(store, me.rank, [(str(host), host.ranks) for host in hosts], host_timeout_s)
    heartbeat.start()
    try:
        yield
    except BaseException as error:
        heartbeat.take_over()
        if _may_come_from_a_peer(error):
            lost = heartbeat.whose_fault()
            if lost is not None:
                raise lost from None
        heartbeat.tell(error.what if isinstance(error, ToolkitError) else f"{type(error).__name__} {error}")
        raise
    heartbeat.leave()


BROKEN = re.compile(r"(reset|closed) by peer|broken pipe|remote process exited", re.IGNORECASE)
"""What gloo, NCCL and the system say of a connection whose other end is gone."""


@contextlib.contextmanager
def _rank_loss() -> Iterator[None]:
    """Raise RankLost for a connection that broke."""
    try:
        yield
    except Exception as error:
        if _may_come_from_a_peer(error) and BROKEN.search(str(error)):
            raise RankLost(
                "another process of this run has ended, and the others cannot go on without it",
                expected="all processes of a run to stay until its end",
                do="look for its own message, or whether it was killed (`dmesg` says so of one that took too much memory); "
                "then continue with --resume auto",
            ) from None
        raise


def _may_come_from_a_peer(error: BaseException) -> bool:
    # What gloo and NCCL raise when a connection breaks or a collective times out. Lack of memory is a subclass, and ours.
    return type(error) is RuntimeError or isinstance(error, dist.DistError)


def _store(me: Process, timeout_s: float) -> Store:
    """A connection of our own to the store that torch.distributed will meet at. Rank 0 opens it unless torchrun has."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            address,
            port,
            is_master=me.is_main and not by_torchrun,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistError, RuntimeError, OSError) as error:
        raise LaunchError(
            f"rank {me.rank} on {socket.gethostname()} cannot reach MASTER_ADDR={address}, MASTER_PORT={port} "
            f"({_first_line(error)})",
            expected=f"the host of rank 0 to answer there within {timeout_s:.0f} s",
            do="look at that host's output and firewall; `toolkit doctor --hostfile FILE` tries the connection from every host",
        ) from None
    # torchrun keeps its store when it restarts the ranks; what they left in it must not be found.
    return PrefixStore(f"toolkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _meet(store: Store, me: Process, timeout_s: float, say: Callable[[str], None]) -> list[Place]:
    """Where each rank runs, in rank order."""
    mine = Place(socket.gethostname(), source_address(os.environ["MASTER_ADDR"]), me.local_rank)
    Heartbeat.prepare(store, me.rank)
    store.set(f"place/{me.rank}", json.dumps(asdict(mine)))
    keys = [f"place/{rank}" for rank in range(me.world_size)]
    patience_s = min(PATIENCE_S, timeout_s)
    if not _all_come(store, keys, patience_s):
        say(f"waiting for {_ranks(_missing(store, keys))} of {me.world_size} ({timeout_s:.0f} s at most)")
        if not _all_come(store, keys, timeout_s - patience_s):
            raise _incomplete(store, keys, timeout_s)
    return [Place(**json.loads(text)) for text in store.multi_get(keys)]


def _all_come(store: Store, keys: list[str], seconds: float) -> bool:
    try:
        store.wait(keys, timedelta(seconds=seconds))
    except dist.DistStoreError:
        return False
    return True


def _missing(store: Store, keys: Sequence[str]) -> list[int]:
    return [rank for rank, key in enumerate(keys) if not store.check([key])]


def _incomplete(store: Store, keys: Sequence[str], timeout_s: float) -> LaunchError:
    missing = _missing(store, keys)
    here = [json.loads(store.get(key)) for rank, key in enumerate(keys) if rank not in missing]
    hosts = ", ".join(dict.fromkeys(f"{place['host']} ({place['address']})" for place in here))
    return LaunchError(
        f"{_ranks(missing)} of {len(keys)} did not start within launch.timeout_s={timeout_s:.0f}; those of {hosts} did",
        expected="every rank of every host",
        do="look at the output of the other hosts; `toolkit doctor --hostfile FILE` checks what they need",
    )


def group(places: Sequence[Place]) -> list[Host]:
    """The hosts: launchers number the ranks of a host in one run, beginning with local rank 0."""
    starts = [rank for rank, place in enumerate(places) if place.local_rank == 0] or [0]
    ends = [*starts[1:], len(places)]
    return [
        Host(places[start].host, places[start].address, range(start, end))
        for start, end in zip(starts, ends, strict=True)
    ]


def _choose_interface(hosts: Sequence[Host], rank: int) -> str:
    """Set GLOO_SOCKET_IFNAME, unless it is set. Returns how that came about, for the reader.

    Left alone, gloo takes the interface that this host's own name resolves to, on many hosts 127.0.0.1: it then waits
    for the others in vain. NCCL is left alone: it knows fast interfaces from slow ones.
    """
    interfaces = {name: [entry.address for entry in entries] for name, entries in psutil.net_if_addrs().items()}
    chosen = os.environ.get(INTERFACE)
    if chosen:
        if not set(chosen.split(",")) <= set(interfaces):  # gloo spreads over several
            raise LaunchError(
                f"{INTERFACE}={chosen} on {socket.gethostname()}",
                expected=f"a network interface of this host: {', '.join(interfaces)}",
                do=f"unset {INTERFACE}: the route to the other hosts decides then",
            )
        return f"{chosen}, because {INTERFACE} says so"
    # Towards itself, rank 0's host would find the loopback interface, if that is what its name stands for.
    elsewhere = next(host.address for host in hosts if rank not in host.ranks)
    peers = [os.environ["MASTER_ADDR"], elsewhere]
    # Launchers of several "hosts" on one machine meet over the loopback interface, and rightly.
    loopback = all(ipaddress.ip_address(host.address).is_loopback for host in hosts)
    found = (interface_towards(peer, interfaces, loopback=loopback) for peer in peers)
    name = next((name for name in found if name is not None), None)
    if name is None:
        raise LaunchError(
            f"{socket.gethostname()} has no network interface towards {' or '.join(peers)}",
            expected="a route to the other hosts that is not the loopback interface",
            do=f"correct the addresses (`deepspeed --master_addr`), or set {INTERFACE}",
        )
    os.environ[INTERFACE] = name
    return f"{name}, the route between them ({INTERFACE} overrides)"


def source_address(peer: str) -> str:
    """The address this host has towards `peer`, a name or an address. Nothing is sent. Raises LaunchError without a route."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise LaunchError(
            f"{socket.gethostname()} has no way to {peer} ({error.strerror or error})",
            expected="a name that resolves, and a route to it",
            do="correct MASTER_ADDR (`deepspeed --master_addr`) or this host's network",
        ) from None


def interface_towards(peer: str, interfaces: dict[str, list[str]], *, loopback: bool) -> str | None:
    """The one of `interfaces` (addresses by name) on the route to `peer`.

    None without a route, and for the loopback interface unless `loopback` admits it.
    """
    try:
        own = source_address(peer)
    except LaunchError:
        return None
    if ipaddress.ip_address(own).is_loopback and not loopback:
        return None
    return next((name for name, addresses in interfaces.items() if own in _without_scope(addresses)), None)


def _without_scope(addresses: Sequence[str]) -> list[str]:
    return [address.partition("%")[0] for address in addresses]


def check_agreement(me: Process, config: Mapping[str, Any]) -> None:
    """Raise LaunchError, on every rank, when another host has rendered another DeepSpeed configuration. Collective.

    One that computes in bf16 beside one that does not, a compiler on one of them: what is "auto" then differs.
    """
    if not me.spans_hosts:
        return
    everyone = gather_objects((socket.gethostname(), _flat(config)))
    first_host, first = everyone[0]
    for host, other in everyone[1:]:
        keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if keys:
            differences = ", ".join(f"{key}={other.get(key)} (there {first.get(key)})" for key in keys)
            raise LaunchError(
                f"host {host} renders another configuration than host {first_host}: {differences}",
                expected="hosts of one kind, or a recipe that leaves nothing to them",
                do="set precision.dtype and optimizer.implementation; `toolkit doctor --hostfile FILE` compares the hosts",
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _describe(hosts: Sequence[Host], interface: str) -> str:
    named = ", ".join(f"{host} {_ranks(host.ranks)}" for host in hosts[:NAMED_HOSTS])
    more = f" and {len(hosts) - NAMED_HOSTS} more" if len(hosts) > NAMED_HOSTS else ""
    return f"{len(hosts)} hosts: {named}{more}; gloo uses {interface}"


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
