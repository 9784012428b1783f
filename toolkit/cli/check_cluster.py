"""Checks of the hosts in a hostfile: the lines, the names, and whether ssh gets in without a password."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.cli.finding import Finding
from toolkit.errors import LaunchError

_LINE = re.compile(r"^(\S+)\s+slots=(\d+)\s*(#.*)?$")  # deepspeed/launcher/runner.py, _parse_hostfile


def check_hostfile(hostfile: Path) -> Iterator[Finding]:
    """One finding per host of `hostfile`. Raises LaunchError if the file cannot be read or a line is malformed."""
    hosts = _read(hostfile)
    yield Finding("hostfile", "ok", f"{len(hosts)} hosts, {sum(hosts.values())} ranks in {hostfile}")
    if shutil.which("pdsh") is None:
        fix = "apt-get install pdsh, or launch with --launcher openmpi or --no_ssh on each host"
        yield Finding("pdsh", "warn", "not found, and `deepspeed --hostfile` starts the hosts with it", fix)
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(_check_host, hosts)


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


def _check_host(host: str) -> Finding:
    try:
        address = socket.getaddrinfo(host, 22)[0][4][0]
    except OSError:
        return Finding(f"host {host}", "fail", "the name does not resolve", "correct the hostfile or /etc/hosts")
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host, "true"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(f"host {host}", "fail", f"ssh does not run: {error}", "install an ssh client")
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        return Finding(f"host {host}", "fail", f"ssh to {address}: {said}", f"make `ssh {host} true` work unasked")
    return Finding(f"host {host}", "ok", f"{address}, ssh works")
