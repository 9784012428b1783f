"""Checks of what a run imports and compiles: package versions, compiler, ninja, locks of killed builds, libaio."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from toolkit.doctor.finding import Finding
from toolkit.engine import kernels

_PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "datasets")


def check_versions(constraints: Path | None = None) -> Iterator[Finding]:
    """Python and the packages that decide the numbers, against the ranges of the package and the versions in `constraints`.

    `constraints` is by default constraints.txt beside the package, which only a source tree has.
    """
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    tested = _tested_versions(constraints or Path(__file__).parent.parents[1] / "constraints.txt")
    ranges = {line.name: line.specifier for line in map(Requirement, importlib.metadata.requires("toolkit") or [])}
    for name in _PACKAGES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", "run `make install`")
            continue
        want = tested.get(name)
        if name in ranges and not ranges[name].contains(found, prereleases=True):
            yield Finding(
                name, "fail", f"{found}, which is outside {ranges[name]}", f"pip install '{name}{ranges[name]}'"
            )
        elif want is not None and Version(found).public != want:
            yield Finding(name, "warn", f"{found}, tested with {want}", f"if it misbehaves: pip install {name}=={want}")
        else:
            yield Finding(name, "ok", found)


def _tested_versions(constraints: Path) -> dict[str, str]:
    try:
        lines = constraints.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


def check_torchvision() -> Iterator[Finding]:
    """A torchvision built for another torch: it dies on import, and transformers, which looks for it, dies with it."""
    if importlib.util.find_spec("torchvision") is None:
        return
    command = [sys.executable, "-c", "import torchvision"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2]
        fix = "pip uninstall torchvision, or install the build that matches torch"
        yield Finding("torchvision", "fail", f"cannot be imported, which breaks transformers too: {said}", fix)


def check_compiler() -> Finding:
    """The C++ compiler and the Python headers that DeepSpeed's operators (optimizers on the host, NVMe) are built with."""
    compiler = os.environ.get("CXX", "c++")  # what torch.utils.cpp_extension calls
    path = shutil.which(compiler)
    version = _run(path, "--version") if path else None
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if path is None:
        found, fix = f"no {compiler!r} on PATH", "install g++ (apt-get install g++), or set CXX"
    elif version is None:
        found, fix = f"{path} does not run", "reinstall g++, or set CXX to one that works"
    elif not headers.is_file():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        found, fix = f"{headers} is missing", f"install Python's headers (apt-get install {package})"
    else:
        return Finding("C++ compiler", "ok", f"{version} at {path}")
    return Finding("C++ compiler", "fail", found, fix)


def check_ninja() -> Finding:
    """The one ninja: a build left by another version starts anew, a minute or more each time the two alternate."""
    own = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    on_path = _ninjas(folders)
    if not on_path:
        fix = f"put {own} first on PATH" if (own / "ninja").is_file() else "pip install ninja"
        return Finding("ninja", "fail", "none on PATH, and DeepSpeed's operators are built with it", fix)
    # The one of this environment counts even off PATH: it comes first as soon as someone activates the environment.
    every = _ninjas([*folders, str(own)])
    listed = ", ".join(f"{version} at {path}" for version, path in every.items())
    if len(every) == 1 or Path(next(iter(on_path.values()))).parent == own:
        return Finding("ninja", "ok", listed)
    found = f"{len(every)} versions ({listed}): builds start anew whenever another one comes first on PATH"
    fix = f"in every shell: export PATH={own}:$PATH" if (own / "ninja").is_file() else "uninstall all but one"
    return Finding("ninja", "warn", found, fix)


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
    root = kernels.extensions_root()
    locks = kernels.locks(root)
    if not locks:
        yield Finding("build locks", "ok", f"none in {root}")
    for lock in locks:
        holder = kernels.holder(lock, processes)
        if holder is None:
            yield Finding(
                "build locks",
                "warn",
                f"{lock} was left by a killed build; a run on this host removes it, one on several waits for ever",
                f"rm {lock}",
            )
        else:
            yield Finding(
                "build locks", "warn", f"process {holder} is building {lock.parent.name}", "wait, or start after it"
            )


def check_libaio() -> Finding:
    """libaio, which only offload to NVMe needs."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    library = ctypes.util.find_library("aio")
    header = compiler and _run(compiler, "-x", "c++", "-fsyntax-only", "-", text="#include <libaio.h>\n") is not None
    if library and header:
        return Finding("libaio", "ok", library)
    missing = "library" if not library else "header libaio.h"
    found = f"no {missing}: offload to NVMe cannot be built"
    return Finding("libaio", "warn", found, "for NVMe only: apt-get install libaio-dev")


def _run(*command: str, text: str | None = None) -> str | None:
    """The first line a command writes, or None if it cannot run or fails."""
    try:
        done = subprocess.run(command, input=text or "", capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip()
