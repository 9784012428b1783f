"""What `toolkit doctor --hostfile` asks of a host. Standard library only: it is sent there as text, and run by that host's Python.

Each line on standard input is a JSON list, an action and its arguments; each is answered by a line of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

WAIT_S = 5.0
RESOLVE_S = 1.5


def clock() -> float:
    """Seconds since the epoch."""
    return time.time()


def facts(folder: str, packages: list[str], variables: list[str]) -> dict[str, Any]:
    """Versions and devices, the values of `variables`, and what is in `folder`, where a launcher would start the processes."""
    root = Path(folder)
    return {
        "python": platform.python_version(),
        "hostname": socket.gethostname(),
        "versions": {name: _version(name) for name in packages},
        "variables": {name: os.environ[name] for name in variables if name in os.environ},
        "compiler": shutil.which(os.environ.get("CXX", "c++")) is not None,
        "cores": len(os.sched_getaffinity(0)),
        "devices": len(list(Path("/dev").glob("nvidia[0-9]*"))),
        "network": network(),
        "folder": root.is_dir(),
        "git": _git(root) if root.is_dir() else "",
        "recipes": digest(root / "recipes"),
        **_toolkit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> str:
    """The commit of `folder`, with "+changes" where files differ from it; empty outside of a repository."""
    commit = _run("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD").strip()
    changed = commit and _run("git", "-C", str(folder), "status", "--porcelain", "-uno").strip()
    return f"{commit}+changes" if changed else commit


def _run(*command: str) -> str:
    """Its standard output; empty when it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def digest(folder: Path) -> str:
    """Of the Python files below `folder`: names and contents. Empty where there are none."""
    files = sorted(folder.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12] if files else ""


def _toolkit() -> dict[str, Any]:
    """The toolkit that a recipe would import here, and what its cache holds."""
    try:
        from toolkit.cache import cache_dir
    except ImportError as error:
        return {"toolkit": "", "toolkit_error": str(error), "cache": "", "cached": []}
    root = cache_dir()
    cached = [
        f"{kind}/{entry.name}"
        for kind in ("models", "data")
        if (root / kind).is_dir()
        for entry in sorted((root / kind).iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    ]
    return {
        "toolkit": digest(Path(str(importlib.import_module("toolkit").__file__)).parent),
        "cache": str(root),
        "cached": cached,
    }


def addresses() -> list[str]:
    """As `hostname -I`, whose first answer the `deepspeed` launcher takes for the master's address."""
    return _run("hostname", "-I").split()


def network() -> dict[str, Any]:
    """The interfaces in the system's order, the one of the default route, and what this host's own name stands for."""
    name = socket.gethostname()
    return {"name": name, "resolves": _resolve(name), "interfaces": _interfaces(), "route": _default_route()}


def _resolve(name: str) -> list[str] | None:
    """The addresses of `name`; None when nobody answers in time, as a name server that is out of reach does not."""
    found: list[str] = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            found.extend(str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))

    # A look-up cannot be ended; the thread is left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_S)
    return None if thread.is_alive() else found


def _interfaces() -> list[dict[str, Any]]:
    """Name, internet addresses and whether it is up. Empty without psutil, which the toolkit brings."""
    try:
        import psutil
    except ImportError:
        return []
    states = psutil.net_if_stats()
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        {
            "name": name,
            "addresses": [entry.address.partition("%")[0] for entry in entries if entry.family in families],
            "up": name not in states or bool(states[name].isup),
        }
        for name, entries in psutil.net_if_addrs().items()
    ]


def _default_route() -> str:
    """The interface of the default route; empty where there is none."""
    try:
        lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return ""
    routes = [line.split() for line in lines]
    default = [(int(fields[6]), fields[0]) for fields in routes if len(fields) > 6 and fields[1] == "00000000"]
    return min(default)[1] if default else ""


class Listener:
    """A port held open while the other hosts try to reach it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def listen(self, address: str, port: int) -> str:
        """Hold `port` of `address` until the next call. Returns why it cannot be had, or nothing."""
        if self._socket is not None:
            self._socket.close()
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.create_server((address, port), family=family, backlog=512)
        except OSError as error:
            return _why(error)
        return ""


def connect(address: str, port: int) -> dict[str, str]:
    """Own address and interface on the way to a listening port, or the error."""
    try:
        with socket.create_connection((address, port), timeout=WAIT_S) as connection:
            own = str(connection.getsockname()[0])
    except OSError as error:
        return {"error": _why(error)}
    return {"address": own, "interface": _interface(own)}


def _why(error: OSError) -> str:
    # The socket module puts addresses into some texts.
    return os.strerror(error.errno) if error.errno else str(error)


def _interface(address: str) -> str:
    return next((str(one["name"]) for one in _interfaces() if address in one["addresses"]), "unknown")


def serve() -> None:
    """Answer until the input ends. What has a name in the table can be asked."""
    listener = Listener()
    actions: dict[str, Any] = {
        "clock": clock,
        "facts": facts,
        "addresses": addresses,
        "exists": os.path.exists,
        "listen": listener.listen,
        "connect": connect,
    }
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        print(json.dumps(actions[action](*arguments)), flush=True)
