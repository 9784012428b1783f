"""Checks of the installed packages: against our ranges, against what they ask of each other, against known clashes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from toolkit.doctor.finding import Check, Finding
from toolkit.doctor.known_clashes import PACKAGES, clashes

_NUMBERS = ("torch", "deepspeed", "transformers", "accelerate", "datasets")
"""The packages that decide the numbers of a run."""
_OPTIONAL = (*sorted(PACKAGES), "torchvision", "torchaudio", "flash-attn", "xformers", "triton", "wandb", "kernels")
"""What a run imports where it is there."""
_COMPILED = ("torchvision", "torchaudio", "flash_attn")
"""Modules that transformers imports where they are there, and that fit the torch they were compiled with."""
_FOR_TORCH = re.compile(r"torch(\d+\.\d+)")
MOST_NAMED = 8

_REQUIREMENTS = Check(
    "requirements", "pip installs versions that fit each other, but a later `pip install` may break what fitted"
)


def check_versions(constraints: Path | None = None) -> Iterator[Finding]:
    """Python and the packages that decide the numbers, against the ranges of the package and the versions in `constraints`.

    `constraints` is by default constraints.txt beside the package, which only a source tree has.
    """
    yield Check("python", "it is the one that the launchers start").ok(
        f"{platform.python_version()} at {sys.executable}"
    )
    tested = _tested_versions(constraints or Path(__file__).parent.parents[1] / "constraints.txt")
    ranges = {line.name: line.specifier for line in _required("toolkit")}
    for name in _NUMBERS:
        package = Check(name, "what it computes, and what it takes, changes between versions")
        found, want = _version(name), tested.get(name)
        if found is None:
            yield package.fail("not installed", f"pip install '{name}{ranges.get(name, '')}'")
        elif name in ranges and not _fits(found, Requirement(f"{name}{ranges[name]}")):
            yield package.fail(f"{found}, which is outside {ranges[name]}", f"pip install '{name}{ranges[name]}'")
        elif want is not None and _public(found) != want:
            yield package.warn(f"{found}, tested with {want}", f"if it misbehaves: pip install {name}=={want}")
        else:
            yield package.ok(found)


def _tested_versions(constraints: Path) -> dict[str, str]:
    try:
        lines = constraints.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


def check_requirements() -> Iterator[Finding]:
    """What every package that a run may import asks of the others, as `pip check`, which looks at all packages there are."""
    asked = [(name, line) for name, lines in _reached(["toolkit", *_OPTIONAL]).items() for line in lines]
    # An extra is asked for by nobody but who installs it; where its packages are there, they have to fit all the same.
    asked += [("toolkit", line) for line in _required("toolkit", extras=True) if _version(line.name) is not None]
    faults: dict[str, list[str]] = {}
    fixes: dict[str, str] = {}
    for name, line in asked:
        there = _version(line.name)
        if there is not None and _fits(there, line):
            continue
        said = f"{name} asks for {line.name}{line.specifier}, " + (f"{there} is there" if there else "which is missing")
        if line.name not in _NUMBERS or name != "toolkit":  # said by check_versions
            faults.setdefault(canonicalize_name(line.name), []).append(said)
            fixes.setdefault(canonicalize_name(line.name), f"pip install '{line.name}{line.specifier}'")
    for name, lines in list(faults.items())[:MOST_NAMED]:
        missing = lines[0].endswith("missing")
        yield (_REQUIREMENTS.fail if missing else _REQUIREMENTS.warn)("; ".join(sorted(set(lines))[:3]), fixes[name])
    if len(faults) > MOST_NAMED:
        yield _REQUIREMENTS.warn(f"so do {len(faults) - MOST_NAMED} more packages", "pip check, which lists them all")
    if not faults:
        count = len({name for name, _ in asked})
        yield _REQUIREMENTS.ok(f"{count} packages have the versions that they ask of each other")


def _reached(roots: Iterable[str]) -> dict[str, list[Requirement]]:
    """What each package requires: the installed ones of `roots`, and all that they require in turn."""
    found: dict[str, list[Requirement]] = {}
    waiting = [canonicalize_name(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name not in found and _version(name) is not None:
            found[name] = _required(name)
            waiting += [canonicalize_name(line.name) for line in found[name]]
    return dict(sorted(found.items()))


def _required(package: str, *, extras: bool = False) -> list[Requirement]:
    """What `package` declares to need here; with `extras`, what its extras for a run add."""
    try:
        declared = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [name for name in declared.get_all("Provides-Extra") or [] if name != "dev"] if extras else [""]
    lines = []
    for text in declared.get_all("Requires-Dist") or []:
        try:
            line = Requirement(text)
        except InvalidRequirement:  # of an old package: pip passes over it, too
            continue
        holds = [line.marker is None or line.marker.evaluate({"extra": name}) for name in names]
        if any(holds) and not (extras and line.marker is None):
            lines.append(line)
    return lines


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str, line: Requirement) -> bool:
    """Builds of one version (+cpu, +cu128) are alike; a version that is none says nothing, as a build from source may."""
    try:
        return line.url is not None or line.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True


def _public(version: str) -> str:
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def check_clashes(installed: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Pairs of `installed` versions, by default those of this environment, that are known to fail."""
    if installed is None:
        installed = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    known = Check("known clashes", "each package alone is sound, so that nothing but the failure tells")
    found = list(clashes(installed))
    for clash, there in found:
        line = f"{there}: {clash.happens}"
        yield known.fail(line, clash.fix) if clash.status == "fail" else known.warn(line, clash.fix)
    if not found:
        yield known.ok(f"none among {len(installed)} packages")


def check_compiled() -> Iterator[Finding]:
    """Packages compiled for another torch: they die on import, and transformers, which looks for them, dies with them."""
    for module in _COMPILED:
        name = module.replace("_", "-")
        if importlib.util.find_spec(module) is None or _declares_to_fit(name):
            continue
        package = Check(name, "its compiled part fits one version of torch only")
        command = [sys.executable, "-c", f"import {module}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            said = done.stderr.strip().rpartition("\n")[2] or f"signal {-done.returncode}"
            built = _built_for(name)
            fix = f"pip uninstall {name}, or install the build that matches torch {_version('torch')}"
            yield package.fail(
                f"cannot be imported, which can break transformers too: {said}"
                + (f" (built for torch {built})" if built else ""),
                fix,
            )


def _declares_to_fit(package: str) -> bool:
    """Whether `package` names this torch, its build (+cpu, +cu130) included: an import, which takes seconds, is then spared."""
    torch, own = _version("torch"), _version(package)
    if torch is None or own is None:
        return False
    if _built_for(package):
        return torch.startswith(f"{_built_for(package)}.")
    named = [line for line in _required(package) if line.name == "torch" and line.specifier]
    same_build = torch.partition("+")[2] == own.partition("+")[2]
    return bool(named) and same_build and all(_fits(torch, line) for line in named)


def _built_for(package: str) -> str:
    """The torch that the file was built for which pip installed: wheels outside of an index carry it in their names."""
    try:
        file = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
    origin: dict[str, Any] = json.loads(file.read_text("direct_url.json") or "{}")
    built = _FOR_TORCH.search(f"{file.version} {origin.get('url', '')}")
    return built[1] if built else ""
