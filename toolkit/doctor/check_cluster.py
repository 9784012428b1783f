"""Checks of the hosts in a hostfile: each is asked over ssh, all at the same time, and compared with this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.doctor import host_probe, launcher_variables
from toolkit.doctor.check_interfaces import GLOO, NCCL, Network, over_other_networks
from toolkit.doctor.check_network import Meeting, check_network
from toolkit.doctor.compare_hosts import Clock, compare
from toolkit.doctor.finding import Check, Finding
from toolkit.doctor.host_session import CONNECT_S, Session, Unreachable, session
from toolkit.errors import LaunchError

PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "datasets", "safetensors", "numpy")
CLOCK_QUESTIONS = 3
_LINE = re.compile(r"^(\S+)\s+slots=(\d+)\s*(#.*)?$")  # deepspeed/launcher/runner.py, _parse_hostfile


def check_hostfile(hostfile: Path, ssh_port: int | None = None) -> Iterator[Finding]:
    """Findings about every host of `hostfile`, where sshd listens at `ssh_port`, by default its own. Raises LaunchError if the file cannot be read or a line is malformed."""
    hosts = _read(hostfile)
    listed = Check("hostfile", "the launcher starts so many ranks on each host as it says")
    yield listed.ok(f"{len(hosts)} hosts, {sum(hosts.values())} ranks in {hostfile}")
    if shutil.which("pdsh") is None:
        fix = "apt-get install pdsh, or launch with --launcher openmpi or --no_ssh on each host"
        yield Check("pdsh", "`deepspeed --hostfile` starts the hosts with it").warn("not found", fix)
    yield from _check_keep_alive(next(iter(hosts)))
    yield from asyncio.run(_check_hosts(hosts, ssh_port))


def _master_port() -> int:
    text = os.environ.get("MASTER_PORT", "")
    return int(text) if text.isascii() and text.isdigit() else 29500


def _read(hostfile: Path) -> dict[str, int]:
    """Slots by host name."""
    try:
        lines = hostfile.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LaunchError(
            f"hostfile {str(hostfile)!r}: {error.strerror}",
            expected="a file with a line `name slots=N` per host",
            do="correct --hostfile",
        ) from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line.strip())
        if match is not None and match[1] not in hosts:
            hosts[match[1]] = int(match[2])
        elif line.strip() and not line.strip().startswith("#"):
            raise LaunchError(
                f"{hostfile}, line {number}: {line.strip()!r}" + (" names a host twice" if match else ""),
                expected="`name slots=N`, each host once",
                do="correct the line; comments start with #",
            )
    if not hosts:
        raise LaunchError(f"{hostfile} names no host", expected="a line `name slots=N` per host", do="add the hosts")
    return hosts


def ssh_settings(host: str) -> dict[str, str]:
    """What ssh would use for `host` when pdsh starts it; empty when ssh does not say."""
    command = ["ssh", *shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", "")), "-G", host]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CONNECT_S)
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs} if done.returncode == 0 else {}


def _check_keep_alive(host: str) -> Iterator[Finding]:
    # The ranks of the other hosts end with a message when one vanishes; pdsh would wait for its ssh all the same.
    if ssh_settings(host).get("serveraliveinterval") == "0":
        why = "when a host vanishes, `deepspeed` does not come back though the ranks of the other hosts have ended"
        fix = 'export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15", or set it in ~/.ssh/config'
        yield Check("ssh keep-alive", why).warn("off", fix)


async def _check_hosts(hosts: Mapping[str, int], ssh_port: int | None) -> list[Finding]:
    set_here = (name for name in os.environ if launcher_variables.why(name) is not None)
    variables = sorted({*set_here, NCCL, GLOO})
    here = host_probe.facts(str(Path.cwd()), list(PACKAGES), variables)
    findings: list[Finding] = []
    reached: list[Reached] = []
    async with contextlib.AsyncExitStack() as stack:
        results = await asyncio.gather(*(_reach(stack, host, ssh_port, variables) for host in hosts))
        for host, result in zip(hosts, results, strict=True):
            if isinstance(result, Unreachable):
                unreached = Check(f"host {host}", "the launcher starts the ranks of every host, or none")
                findings.append(unreached.fail(result.found, result.fix))
            else:
                reached.append(result)
                findings += compare(host, hosts[host], here, result.facts, result.clock)
        findings += await _check_shared([answer.talk for answer in reached])
        findings += _check_variables({answer.talk.host: answer.facts for answer in reached})
        meeting = await check_network([answer.talk for answer in reached], _master_port())
        findings += [*meeting.findings, *_check_nccl(reached, meeting)]
    return findings


async def _check_shared(hosts: Iterable[Session]) -> list[Finding]:
    """Whether what is written in this folder is seen by the others, as the files of a run have to be."""
    folder = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-") as token:
            blind = [talk.host for talk in hosts if not await talk.ask("exists", token.name)]
    except (OSError, Unreachable):
        return []  # said elsewhere: the folder cannot be written to, or the host has gone
    if not blind:
        return []
    found = f"{_some(blind)} {'does' if len(blind) == 1 else 'do'} not see what is written in {folder}"
    fix = "pass an --output_dir on a file system that all hosts share"
    return [Check("shared folder", "a checkpoint is made of a file of each rank").warn(found, fix)]


def _check_nccl(reached: Sequence[Reached], meeting: Meeting) -> Iterator[Finding]:
    """Whether NCCL would meet over the network on which the hosts reach each other; without GPUs it is not used."""
    if len(reached) < 2 or not meeting.over or not any(answer.facts["devices"] for answer in reached):
        return
    networks = {answer.talk.host: Network.of(answer.facts["network"]) for answer in reached}
    first = reached[0].talk.host
    over = {host: name for host, name in meeting.over.items() if host}
    over[first] = next((one.name for one in networks[first].interfaces if meeting.over[""] in one.addresses), "unknown")
    # The launcher forwards what this shell sets; else each host has its own.
    here = os.environ.get(NCCL)
    settings = {answer.talk.host: here or answer.facts["variables"].get(NCCL, "") for answer in reached}
    yield over_other_networks(over, networks, settings)


@dataclass(frozen=True)
class Reached:
    """A host that answers."""

    talk: Session
    facts: dict[str, Any]
    clock: Clock


async def _reach(
    stack: contextlib.AsyncExitStack, host: str, ssh_port: int | None, variables: list[str]
) -> Reached | Unreachable:
    try:
        await asyncio.to_thread(_check_name, host)
        talk = await stack.enter_async_context(session(host, ssh_port))
        facts = await talk.ask("facts", str(Path.cwd()), list(PACKAGES), variables)
        return Reached(talk, facts, await _clock(talk))
    except Unreachable as error:
        return error


def _check_name(host: str) -> None:
    name = ssh_settings(host).get("hostname", host)
    try:
        socket.getaddrinfo(name, 22)
    except OSError:
        raise Unreachable("the name does not resolve", "correct the hostfile or /etc/hosts") from None


async def _clock(talk: Session) -> Clock:
    clocks = []
    for _ in range(CLOCK_QUESTIONS):
        before = time.time()
        there = await talk.ask("clock")
        after = time.time()
        clocks.append(Clock(there - (before + after) / 2, (after - before) / 2))
    return min(clocks, key=lambda clock: clock.error_s)


def _check_variables(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Variables of this shell that the ranks would not see."""
    check = Check(
        "variables", "ranks under other settings compute, wait or look for files in another way than those here"
    )
    wanted = launcher_variables.to_forward(os.environ)
    name = launcher_variables.file_name()
    files = (Path.home() / name, Path.cwd() / name)
    for file in files:
        if bad := launcher_variables.malformed(file):
            found = f"{file}, line {bad[0]}: the launcher takes every line for NAME=VALUE and dies of it"
            yield check.fail(found, f"sed -i {bad[0]}d {shlex.quote(str(file))}")
    forwarded = launcher_variables.read(files[0]) | launcher_variables.read(files[1])
    lost = {
        variable: hosts
        for variable, value in wanted.lines.items()
        if (
            hosts := [
                host for host, there in answers.items() if (there["variables"] | forwarded).get(variable) != value
            ]
        )
    }
    ours = launcher_variables.ours(files[1])
    for variable, hosts in lost.items():
        found = f"{variable} ({launcher_variables.why(variable)}) is not as here on {_some(hosts)}"
        by_hand = next((file for file in reversed(files) if variable in launcher_variables.read(file)), None)
        fix = "`toolkit doctor --hostfile FILE --write-env`, or unset it here"
        if by_hand is not None and (by_hand, variable in ours) != (files[1], True):
            fix = f"{by_hand} says otherwise: correct it there, or here"
        yield check.warn(found, fix)
    for variable, reason in wanted.kept_back.items():
        hosts = [host for host, there in answers.items() if there["variables"].get(variable) != os.environ[variable]]
        if hosts:
            yield check.warn(f"{variable} is not as here on {_some(hosts)}", reason)
    if answers and not lost:
        yield check.ok("every host sees what this shell sets for a run")


def _some(hosts: list[str]) -> str:
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
