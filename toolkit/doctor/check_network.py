"""Whether every host of a run reaches the port at which the ranks will meet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from toolkit.doctor.finding import Finding
from toolkit.doctor.host_session import Session, Unreachable


async def check_network(talks: Sequence[Session], port: int) -> list[Finding]:
    """Listen on `port` of the first host and let the others connect, at each of its addresses until one works for all.

    The first address is what the `deepspeed` launcher takes without --master_addr.
    """
    if not talks:
        return []
    master, *others = talks
    try:
        addresses = await master.ask("addresses")
        if not addresses:
            found = f"`ssh {master.host} hostname -I` names no address, and the launcher asks it for the master's"
            return [Finding("network", "fail", found, "give the launcher --master_addr")]
        return [await _try_addresses(master, others, addresses, port)]
    except Unreachable as error:
        return [Finding("network", "fail", f"{master.host}: {error.found}", error.fix)]


async def _try_addresses(master: Session, others: Sequence[Session], addresses: Sequence[str], port: int) -> Finding:
    first_problems: list[str] = []
    for address in addresses:
        busy = await master.ask("listen", address, port)
        if busy:
            fix = "end the run that holds it, or launch with another --master_port"
            return Finding("network", "fail", f"port {port} on {master.host}: {busy}", fix)
        ways = await asyncio.gather(*(_way(talk, address, port) for talk in others))
        problems = [problem for problem, _ in ways if problem]
        if not problems and address == addresses[0]:
            over = "".join(f", {way}" for _, way in ways)
            return Finding("network", "ok", f"the ranks meet at {address}, port {port} on {master.host}{over}")
        if not problems:
            fix = f"launch with --master_addr {address}, which every host reaches"
            return Finding("network", "fail", _some(first_problems), fix)
        first_problems = first_problems or problems
    fix = f"open port {port} and those above 1023 between the hosts, or give --master_addr one that they reach"
    return Finding("network", "fail", _some(first_problems), fix)


async def _way(talk: Session, address: str, port: int) -> tuple[str, str]:
    """(what is wrong, how it gets there)"""
    try:
        way = await talk.ask("connect", address, port)
    except Unreachable as error:
        return f"{talk.host}: {error.found}", ""
    if "error" in way:
        return f"{talk.host} does not reach {address}, port {port}: {way['error']}", ""
    return "", f"{talk.host} from {way['address']} over {way['interface']}"


def _some(problems: Sequence[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more hosts" if len(problems) > 3 else "")
