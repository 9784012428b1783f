"""Checks of what a run compiles with: compiler, ninja, locks of killed builds, libaio."""

from __future__ import annotations

import ctypes.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor.finding import Check, Finding
from toolkit.engine import kernels


def check_compiler() -> Finding:
    """The C++ compiler and the Python headers that DeepSpeed's operators (optimizers on the host, NVMe) are built with."""
    check = Check("C++ compiler", "offloaded optimizers and NVMe are compiled at their first use")
    compiler = os.environ.get("CXX", "c++")  # what torch.utils.cpp_extension calls
    path = shutil.which(compiler)
    version = _run(path, "--version") if path else None
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if path is None:
        found, fix = f"no {compiler!r} on PATH", "apt-get install g++, or set CXX"
    elif version is None:
        found, fix = f"{path} does not run", "apt-get install --reinstall g++, or set CXX to one that works"
    elif not headers.is_file():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        found, fix = f"{headers} is missing", f"apt-get install {package}, which brings Python's headers"
    else:
        return check.ok(f"{version} at {path}")
    return check.fail(found, fix)


def check_ninja() -> Finding:
    """The one ninja: a build left by another version starts anew, a minute or more each time the two alternate."""
    check = Check("ninja", "DeepSpeed's operators are built with it, and anew, a minute each, when its version changes")
    own = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    on_path = _ninjas(folders)
    if not on_path:
        fix = f"export PATH={own}:$PATH" if (own / "ninja").is_file() else "pip install ninja"
        return check.fail("none on PATH", fix)
    # The one of this environment counts even off PATH: it comes first as soon as someone activates the environment.
    every = _ninjas([*folders, str(own)])
    listed = ", ".join(f"{version} at {path}" for version, path in every.items())
    if len(every) == 1 or Path(next(iter(on_path.values()))).parent == own:
        return check.ok(listed)
    found = f"{len(every)} versions ({listed}): builds start anew whenever another one comes first on PATH"
    fix = (
        f"in every shell: export PATH={own}:$PATH"
        if (own / "ninja").is_file()
        else "pip uninstall ninja, or apt-get remove ninja-build"
    )
    return check.warn(found, fix)


def _ninjas(folders: list[str]) -> dict[str, str]:
    """Path of the first ninja of each version."""
    found: dict[str, str] = {}
    for folder in folders:
        path = shutil.which("ninja", path=folder)
        version = _run(path, "--version") if path else None
        if path and version:
            found.setdefault(version, path)
    return found


def check_build_locks(processes: Path = Path("/proc")) -> Iterator[Finding]:
    """Locks in the cache of compiled operators. A killed build leaves one behind, for which torch itself waits without a word.

    torch keeps the file open for as long as it builds, so a lock that no process has open is stale.
    """
    check = Check("build locks", "torch waits for the one who holds a lock, without a word and without a limit")
    root = kernels.extensions_root()
    locks = kernels.locks(root)
    if not locks:
        yield check.ok(f"none in {root}")
    for lock in locks:
        holder = kernels.holder(lock, processes)
        if holder is None:
            found = f"{lock} was left by a killed build; a run on this host removes it, one on several waits for ever"
            yield check.warn(found, f"rm {shlex.quote(str(lock))}")
        else:
            found = f"process {holder} is building {lock.parent.name}"
            yield check.warn(found, f"wait for it: tail --pid={holder} -f /dev/null")


def check_libaio() -> Finding:
    """libaio, which only offload to NVMe needs."""
    check = Check("libaio", "offload to NVMe is compiled against it; nothing else needs it")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    library = ctypes.util.find_library("aio")
    header = compiler and _run(compiler, "-x", "c++", "-fsyntax-only", "-", text="#include <libaio.h>\n") is not None
    if library and header:
        return check.ok(library)
    missing = "library" if not library else "header libaio.h"
    found = f"no {missing}: offload to NVMe cannot be built"
    return check.warn(found, "for NVMe only: apt-get install libaio-dev")


def _run(*command: str, text: str | None = None) -> str | None:
    """The first line a command writes, or None if it cannot run or fails."""
    try:
        done = subprocess.run(command, input=text or "", capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip()
