"""What the lock file of a run's folder says about its holder, and whether that process still lives. Imports no torch."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from toolkit.errors import LaunchError

LOCK = ".lock"


def describe_me(**more: Any) -> str:
    """What this process writes into the file."""
    began = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(psutil.Process().create_time()))
    me = {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "identity": identity(os.getpid())}
    return json.dumps(me | more)


def holder(path: Path) -> dict[str, Any]:
    """What the file says about its holder; empty where it says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "pid" in found and "host" in found else {}


def identity(pid: int) -> list[str] | None:
    """What no other process ever shares with `pid`: boot and pid namespace it counts in, and its start in ticks since boot.

    None where there is no such process, or the system does not tell. Containers may share a host's name, and the process
    started first in each has the same number.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
        # "pid (name) state ...": a name may hold anything, even brackets. The start is the 22nd field.
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return [boot, namespace, started]


def lives(found: dict[str, Any]) -> bool | None:
    """Whether the holder that `found` tells of is running; None where this process cannot know."""
    me, other = identity(os.getpid()), found.get("identity")
    if me is None or not isinstance(other, list) or other[:2] != me[:2]:
        return None
    return identity(int(found["pid"])) == other


def in_use(path: Path) -> LaunchError:
    """The refusal to start in a folder that has a run in progress."""
    found = holder(path)
    who = (
        f"process {found['pid']} on {found['host']} has had it since {found.get('began', 'some time')}"
        if found
        else "another process has it"
    )
    stop = f"stop it (on {found['host']}: kill {found['pid']})" if found else "stop it"
    return LaunchError(
        f"--output_dir {path.parent} is in use: {who}",
        expected="one run at a time in a folder",
        do=f"wait until it ends, {stop}, or pass another --output_dir; if that process is gone, delete {path}",
    )
