"""Which network interface NCCL and gloo would take on a host, and whether the ranks of other hosts find it there."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.doctor.finding import Check, Finding

NCCL, GLOO = "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"
_VIRTUAL = ("docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "tun", "tap", "wg", "tailscale")
"""How the names of interfaces begin that reach no other host, or reach it slowly."""


@dataclass(frozen=True)
class Interface:
    """A network interface as the system lists it."""

    name: str
    addresses: tuple[str, ...]
    up: bool = True

    @property
    def usable(self) -> bool:
        """Whether a socket can be bound to it."""
        return self.up and bool(self.addresses)

    @property
    def is_loopback(self) -> bool:
        """Whether all that it reaches is this host."""
        return bool(self.addresses) and all(ipaddress.ip_address(address).is_loopback for address in self.addresses)


@dataclass(frozen=True)
class Network:
    """What host_probe.network says of a host."""

    name: str
    """The host's own."""
    resolves: tuple[str, ...] | None
    """The addresses that its name stands for; None when nobody answered in time."""
    interfaces: tuple[Interface, ...]
    route: str = ""
    """The interface of the default route."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Network:
        """As host_probe.network answers."""
        interfaces = tuple(Interface(one["name"], tuple(one["addresses"]), one["up"]) for one in facts["interfaces"])
        resolves = None if facts["resolves"] is None else tuple(facts["resolves"])
        return cls(facts["name"], resolves, interfaces, facts["route"])

    @property
    def best(self) -> Interface | None:
        """The one towards other hosts: of the default route, else the first that is not loopback and not virtual."""
        routed = [one for one in self.interfaces if one.usable and one.name == self.route]
        real = [
            one for one in self.interfaces if one.usable and not one.is_loopback and not one.name.startswith(_VIRTUAL)
        ]
        return next(iter([*routed, *real]), None)


def nccl_choice(interfaces: Sequence[Interface], setting: str = "") -> list[Interface]:
    """The interfaces that NCCL takes, the first of them to meet over (NCCL, misc/socket.cc, ncclFindInterfaces).

    `setting` lists how names begin; "=" before it stands for whole names, "^" for all but those. Without one,
    InfiniBand is preferred, and docker, loopback and virtual bridges come last.
    """
    usable = [one for one in interfaces if one.usable]
    if len(setting) > 1:  # so NCCL counts
        return _matching(usable, setting)
    for words in ("ib", "^docker,lo,virbr", "docker", "lo", "virbr"):
        if found := _matching(usable, words):
            return found
    return []


def _matching(interfaces: Sequence[Interface], setting: str) -> list[Interface]:
    excludes, rest = setting.startswith("^"), setting.removeprefix("^")
    exact, names = rest.startswith("="), [name for name in rest.removeprefix("=").split(",") if name]
    return [
        one
        for one in interfaces
        if any(one.name == name if exact else one.name.startswith(name) for name in names) != excludes
    ]


def check_nccl(network: Network, setting: str, *, has_gpu: bool) -> Finding:
    """The interface that NCCL would take, given NCCL_SOCKET_IFNAME=`setting`."""
    check = Check(
        "NCCL interface",
        "ranks of other hosts wait in vain, until the timeout, for one that meets them over another network",
    )
    chosen, best = nccl_choice(network.interfaces, setting), network.best
    listed = ", ".join(one.name for one in network.interfaces if one.usable) or "none"
    if setting and not chosen:
        unusable = [one.name for one in _matching(network.interfaces, setting)]
        why = f"{', '.join(unusable)} is down or has no address" if unusable else f"this host has {listed}"
        found = f"{NCCL}={setting} matches no interface: {why}"
        return (check.fail if has_gpu else check.warn)(found, _set_or_unset(NCCL, best))
    if not chosen:
        return check.ok("no interface has an address, so that only ranks of this host can meet")
    first = chosen[0]
    others = ", ".join(dict.fromkeys(one.name for one in chosen[1:]))
    found = f"{first.name} ({first.addresses[0]}){f', before {others}' if others else ''}"
    found += f", because {NCCL} says so" if setting else ""
    if not has_gpu:
        return check.ok(f"{found}; no GPU is here, so that NCCL is not used")
    if best is None or best == first or (not setting and first.name.startswith("ib")):
        return check.ok(found)
    found += f"; the route to other hosts goes over {best.name} ({best.addresses[0]})"
    if setting:
        return check.ok(found)
    return check.warn(f"{found}: runs on several hosts may not meet", f"export {NCCL}={best.name}")


def check_gloo(network: Network, setting: str) -> Finding:
    """The interface that gloo would take, given GLOO_SOCKET_IFNAME=`setting`: else what the host's own name stands for."""
    check = Check(
        "gloo interface",
        "a name that stands for no address of this host makes launchers and torch meet where nobody is",
    )
    best = network.best
    if setting:
        usable = {one.name for one in network.interfaces if one.usable}
        wrong = [name for name in setting.split(",") if name not in usable]
        if wrong:
            found = f"{GLOO}={setting}, and {', '.join(wrong)} is no interface of this host that is up: {', '.join(sorted(usable))} are"
            return check.fail(found, _set_or_unset(GLOO, best))
        return check.ok(f"{setting}, because {GLOO} says so")
    export = f"export {GLOO}={best.name}" if best is not None else f"export {GLOO}=an interface towards the other hosts"
    hosts = (
        f"echo '{best.addresses[0]} {network.name}' | sudo tee -a /etc/hosts"
        if best is not None
        else "add the name to /etc/hosts"
    )
    if network.resolves is None:
        return check.warn(
            f"this host's name {network.name} is looked up for seconds without an answer", f"{hosts}; or {export}"
        )
    if not network.resolves:
        return check.warn(f"this host's name {network.name} does not resolve", f"{hosts}; or {export}")
    owner = _owner(network)
    if owner is None:
        found = f"this host's name {network.name} stands for {network.resolves[0]}, which is no address of this host"
        return check.warn(found, f"correct that line: {hosts}; or {export}")
    found = f"this host's name stands for {network.resolves[0]} ({owner.name})"
    if owner.is_loopback and best is not None and not best.is_loopback:
        # Debian's default. Our runs on several hosts take the route between them (engine/hosts.py): nothing is wrong.
        return check.ok(f"{found}; runs on several hosts take the route between them, other programs need: {export}")
    return check.ok(found)


def _owner(network: Network) -> Interface | None:
    """The interface that the first usable address of the host's name belongs to; all of 127.0.0.0/8 is loopback."""
    for address in network.resolves or ():
        for one in network.interfaces:
            if one.up and (
                address in one.addresses
                or (one.is_loopback and ipaddress.ip_address(address.partition("%")[0]).is_loopback)
            ):
                return one
    return None


def _set_or_unset(variable: str, best: Interface | None) -> str:
    return f"unset {variable}" + (f", or export {variable}={best.name}" if best is not None else "")


def check_interfaces(network: Network, environment: Mapping[str, str], *, has_gpu: bool) -> Iterator[Finding]:
    """Both, under the variables of `environment`."""
    yield check_nccl(network, environment.get(NCCL, ""), has_gpu=has_gpu)
    yield check_gloo(network, environment.get(GLOO, ""))


def over_other_networks(
    ways: Mapping[str, str], networks: Mapping[str, Network], settings: Mapping[str, str]
) -> Finding:
    """Hosts whose NCCL would meet over another interface than `ways`, by host the one on its way to the first host.

    `settings` holds NCCL_SOCKET_IFNAME by host, where it is set.
    """
    check = Check(
        "NCCL interface",
        "ranks of other hosts wait in vain, until the timeout, for one that meets them over another network",
    )
    chosen = {host: nccl_choice(networks[host].interfaces, settings.get(host, "")) for host in ways if host in networks}
    wrong = {
        host: found[0].name if found else "none"
        for host, found in chosen.items()
        if ways[host] != "unknown" and ways[host] not in [one.name for one in found[:1]]
    }
    if not wrong:
        return check.ok("on every host the one on the way to the others")
    said = [f"{name} on {host}, where the way to the others goes over {ways[host]}" for host, name in wrong.items()]
    names = ",".join(dict.fromkeys(name for name in ways.values() if name != "unknown"))
    found = "; ".join(said[:3]) + (f"; and {len(said) - 3} more hosts" if len(said) > 3 else "")
    return check.warn(found, f"export {NCCL}={names}, then `toolkit doctor --hostfile FILE --write-env`")
