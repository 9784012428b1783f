"""Whether every host of a run reaches the port at which the ranks will meet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.doctor.finding import Check, Finding
from toolkit.doctor.host_session import Session, Unreachable

_NETWORK = Check(
    "network", "the ranks of all hosts meet at one port of the first, and wait for each other until the timeout"
)


@dataclass(frozen=True)
class Meeting:
    """Whether the hosts can meet."""

    findings: list[Finding]
    over: Mapping[str, str] = field(default_factory=dict)
    """The interface of each host on its way to the first one, where they can; the first one's own address under ""."""


async def check_network(talks: Sequence[Session], port: int) -> Meeting:
    """Listen on `port` of the first host and let the others connect, at each of its addresses until one works for all.

    The first address is what the `deepspeed` launcher takes without --master_addr.
    """
    if not talks:
        return Meeting([])
    master, *others = talks
    try:
        addresses = await master.ask("addresses")
        if not addresses:
            found = f"`ssh {master.host} hostname -I` names no address, and the launcher asks it for the master's"
            return Meeting([_NETWORK.fail(found, "launch with --master_addr ADDRESS of that host")])
        return await _try_addresses(master, others, addresses, port)
    except Unreachable as error:
        return Meeting([_NETWORK.fail(f"{master.host}: {error.found}", error.fix)])


async def _try_addresses(master: Session, others: Sequence[Session], addresses: Sequence[str], port: int) -> Meeting:
    first_problems: list[str] = []
    for address in addresses:
        busy = await master.ask("listen", address, port)
        if busy:
            fix = "end the run that holds it, or launch with another --master_port"
            return Meeting([_NETWORK.fail(f"port {port} on {master.host}: {busy}", fix)])
        ways = await asyncio.gather(*(_way(talk, address, port) for talk in others))
        problems = [way.problem for way in ways if way.problem]
        if not problems:
            over = {"": address, **{talk.host: way.interface for talk, way in zip(others, ways, strict=True)}}
            if address == addresses[0]:
                said = "".join(f", {way.said}" for way in ways)
                finding = _NETWORK.ok(f"the ranks meet at {address}, port {port} on {master.host}{said}")
            else:
                finding = _NETWORK.fail(
                    _some(first_problems), f"launch with --master_addr {address}, which every host reaches"
                )
            return Meeting([finding], over)
        first_problems = first_problems or problems
    fix = f"open port {port} and those above 1023 between the hosts, or launch with --master_addr, one that they reach"
    return Meeting([_NETWORK.fail(_some(first_problems), fix)])


@dataclass(frozen=True)
class _Way:
    """How a host reaches the first one, or what is wrong."""

    problem: str = ""
    interface: str = "unknown"
    said: str = ""


async def _way(talk: Session, address: str, port: int) -> _Way:
    try:
        way = await talk.ask("connect", address, port)
    except Unreachable as error:
        return _Way(f"{talk.host}: {error.found}")
    if "error" in way:
        return _Way(f"{talk.host} does not reach {address}, port {port}: {way['error']}")
    return _Way("", way["interface"], f"{talk.host} from {way['address']} over {way['interface']}")


def _some(problems: Sequence[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more hosts" if len(problems) > 3 else "")
