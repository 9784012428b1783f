"""`toolkit doctor`: is this host fit for a run? One line per check; for all that is not: why it matters, and the cure."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.cache import cache_dir
from toolkit.doctor import (
    check_builds,
    check_cuda,
    check_host,
    check_interfaces,
    check_nvme,
    check_offload,
    check_versions,
    host_probe,
    launcher_variables,
)
from toolkit.doctor.check_cluster import check_hostfile
from toolkit.doctor.finding import Check, Finding
from toolkit.errors import InputError
from toolkit.storage import HERE, storage_errors

_COLOURS = {"ok": "green", "fail": "red", "warn": "yellow"}
"""In the order of the report: what has to be done comes last, where a reader of a terminal looks first."""


@dataclass(frozen=True)
class Wanted:
    """What the report is to look at, beyond this host."""

    hostfile: Path | None = None
    ssh_port: int | None = None
    """As for the launcher."""
    write_env: bool = False
    """First write ./.deepspeed_env, by which the launcher gives the hosts this shell's settings."""
    gpu: bool = False
    """Measure the GPUs, some seconds each."""
    nvme: Path | None = None
    """Measure the disk of this folder, two seconds."""
    parameters: int | None = None
    """How many a run would train: whether their states fit."""


def doctor(stream: TextIO, wanted: Wanted | None = None, *, verbose: bool = False, as_json: bool = False) -> int:
    """Write every finding to `stream`, those to act on last. Returns 2 if a run would break, else 0.

    `verbose` gives the reason for every check, `as_json` one JSON list, the worst first. Raises LaunchError if the
    hostfile cannot be read, if there is no GPU to measure or no folder; in JSON that is a finding.
    """
    wanted = wanted or Wanted()
    if wanted.write_env:
        _write_env(sys.stderr if as_json else stream)
    try:
        findings = [*_asked(wanted), *_findings(wanted.parameters)]
    except InputError as error:
        if not as_json:
            raise
        findings = [Finding("command", "fail", error.what, error.expected, error.do)]
    ordered = sorted(findings, key=lambda finding: list(_COLOURS).index(finding.status))
    count = {status: sum(finding.status == status for finding in findings) for status in _COLOURS}
    if as_json:
        fine = count["ok"]
        stream.write(json.dumps([asdict(finding) for finding in [*ordered[fine:], *ordered[:fine]]], indent=2) + "\n")
    else:
        _write(stream, ordered, verbose=verbose)
        stream.write(f"{count['ok']} ok, {count['warn']} to know, {count['fail']} to repair\n")
    return 2 if count["fail"] else 0


def _asked(wanted: Wanted) -> Iterator[Finding]:
    """What is looked at on request only. First, so that a request that cannot be met costs no waiting."""
    if wanted.nvme is not None:
        yield from check_nvme.check_nvme(wanted.nvme, wanted.parameters)
    if wanted.hostfile is not None:
        yield from check_hostfile(wanted.hostfile, wanted.ssh_port)
    if wanted.gpu:
        from toolkit.doctor.check_gpu import check_gpus  # imports torch, which may be what is damaged

        yield from check_gpus()


def _write_env(stream: TextIO) -> None:
    file = Path.cwd() / launcher_variables.file_name()
    forward = launcher_variables.to_forward(os.environ)
    with storage_errors("--write-env", file.parent, HERE):
        changed = launcher_variables.write(file, forward.lines)
    now = launcher_variables.read(file)
    stream.write(f"{file}: {'written' if changed else 'unchanged'}\n" if changed or now else "nothing to forward\n")
    for name in sorted(launcher_variables.ours(file)):
        stream.write(f"  {name}={now[name]}: {launcher_variables.why(name)}\n")
    for name, reason in forward.kept_back.items():
        stream.write(f"  not {name}: {reason}\n")


def _checks(parameters: int | None) -> dict[str, Callable[[], Finding | Iterable[Finding]]]:
    has_gpu = check_cuda.has_gpu()
    return {
        "versions": check_versions.check_versions,
        "requirements": check_versions.check_requirements,
        "known clashes": check_versions.check_clashes,
        "compiled packages": check_versions.check_compiled,
        "C++ compiler": check_builds.check_compiler,
        "ninja": check_builds.check_ninja,
        "build locks": check_builds.check_build_locks,
        "libaio": check_builds.check_libaio,
        "host memory": check_host.check_memory,
        "swap": check_host.check_swap,
        "shared memory": check_host.check_shared_memory,
        "offload": lambda: check_offload.check_offload(parameters),
        "pinned memory": lambda: check_offload.check_pinned(has_gpu=has_gpu, parameters=parameters),
        "disk of the cache": lambda: check_host.check_disk("disk of the cache", cache_dir()),
        "disk of this folder": lambda: check_host.check_disk("disk of this folder", Path.cwd()),
        "devices": _devices,
        "interfaces": lambda: _interfaces(has_gpu),
        "port": lambda: check_host.check_port(os.environ.get("MASTER_PORT", "29500")),
        "launcher files": check_host.check_launcher_files,
        "environment": check_host.check_environment,
    }


def _devices() -> Iterator[Finding]:
    try:
        import torch  # noqa: F401
    except Exception as error:  # a damaged installation raises anything
        check = Check("devices", "nothing of a run works without torch")
        yield check.fail(f"torch cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    yield check_host.check_cpu()
    yield from check_cuda.check_cuda()


def _interfaces(has_gpu: bool) -> Iterable[Finding]:
    network = check_interfaces.Network.of(host_probe.network())
    return check_interfaces.check_interfaces(network, os.environ, has_gpu=has_gpu)


def _findings(parameters: int | None) -> list[Finding]:
    """Of all checks, which wait for other programs, for a disk or a name server beside each other."""
    with ThreadPoolExecutor() as pool:
        results = [pool.submit(_result, name, check) for name, check in _checks(parameters).items()]
        return [finding for result in results for finding in result.result()]


def _result(name: str, check: Callable[[], Finding | Iterable[Finding]]) -> list[Finding]:
    try:
        found = check()
        return [found] if isinstance(found, Finding) else list(found)
    except OSError as error:  # no /proc, no permission: the other checks still speak
        cannot = Check(name, "what was not looked at may be wrong")
        return [cannot.warn(f"cannot be checked: {error}", "see what the system's message is about")]


def _write(stream: TextIO, findings: Sequence[Finding], *, verbose: bool) -> None:
    console = Console(file=stream)
    if console.is_terminal:
        console.print(_table(findings, verbose=verbose))
        return
    for finding in findings:
        stream.write(f"{finding.status:5} {finding.check}: {finding.found}\n")
        if verbose or finding.status != "ok":
            stream.write(f"      why: {finding.why}\n")
        if finding.fix:
            stream.write(f"      do this: {finding.fix}\n")


def _table(findings: Sequence[Finding], *, verbose: bool) -> Table:
    """Texts, not markup: a path may hold brackets; folded, not cut: it must stay whole to be copied."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        found = Text(finding.found)
        if verbose or finding.status != "ok":
            found.append(f"\nwhy: {finding.why}", "dim")
        if finding.fix:
            found.append(f"\n-> {finding.fix}", "bold")
        table.add_row(Text(finding.status, _COLOURS[finding.status]), Text(finding.check), found)
    return table
