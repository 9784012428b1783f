"""`toolkit doctor`: is this host fit for a run? One line per check, and the cure beside everything that is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.cache import cache_dir
from toolkit.doctor import check_builds, check_host, launcher_variables
from toolkit.doctor.check_cluster import check_hostfile
from toolkit.doctor.finding import Finding
from toolkit.storage import HERE, storage_errors

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_CHECKS: dict[str, Callable[[], Finding | Iterable[Finding]]] = {
    "versions": check_builds.check_versions,
    "torchvision": check_builds.check_torchvision,
    "C++ compiler": check_builds.check_compiler,
    "ninja": check_builds.check_ninja,
    "build locks": check_builds.check_build_locks,
    "libaio": check_builds.check_libaio,
    "host memory": check_host.check_memory,
    "swap": check_host.check_swap,
    "shared memory": check_host.check_shared_memory,
    "pinned memory": check_host.check_memlock,
    "disk of the cache": lambda: check_host.check_disk("disk of the cache", cache_dir()),
    "disk of this folder": lambda: check_host.check_disk("disk of this folder", Path.cwd()),
    "devices": check_host.check_devices,
    "port": lambda: check_host.check_port(os.environ.get("MASTER_PORT", "29500")),
    "launcher files": check_host.check_launcher_files,
    "environment": check_host.check_environment,
}


def doctor(
    stream: TextIO,
    hostfile: Path | None = None,
    *,
    ssh_port: int | None = None,
    write_env: bool = False,
    gpu: bool = False,
) -> int:
    """Write every finding to `stream`; with `hostfile`, look at its hosts too. Returns 2 if a run would break, else 0.

    `ssh_port` as for the launcher. `write_env` first writes ./.deepspeed_env, by which the launcher gives the hosts this
    shell's settings. `gpu` measures the GPUs, some seconds each. Raises LaunchError if `hostfile` cannot be read, and
    where there is no GPU to measure.
    """
    console = Console(file=stream)
    if write_env:
        _write_env(stream)
    of_hosts = list(check_hostfile(hostfile, ssh_port)) if hostfile is not None else []
    of_gpus = list(_of_gpus()) if gpu else []
    findings = [*_findings(), *of_gpus, *of_hosts]
    if console.is_terminal:
        console.print(_table(findings))
    else:
        for finding in findings:
            _write_plain(stream, finding)
    count = {status: sum(finding.status == status for finding in findings) for status in _COLOURS}
    stream.write(f"{count['ok']} ok, {count['warn']} to know, {count['fail']} to repair\n")
    return 2 if count["fail"] else 0


def _of_gpus() -> Iterator[Finding]:
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


def _findings() -> Iterator[Finding]:
    for name, check in _CHECKS.items():
        try:
            result = check()
            yield from [result] if isinstance(result, Finding) else result
        except OSError as error:  # no /proc, no permission: the other checks still speak
            yield Finding(name, "warn", f"cannot be checked: {error}")


def _table(findings: list[Finding]) -> Table:
    """Texts, not markup: a path may hold brackets; folded, not cut: it must stay whole to be copied."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        found = Text(finding.found)
        if finding.fix:
            found.append(f"\n-> {finding.fix}", "bold")
        table.add_row(Text(finding.status, _COLOURS[finding.status]), Text(finding.check), found)
    return table


def _write_plain(stream: TextIO, finding: Finding) -> None:
    stream.write(f"{finding.status:5} {finding.check}: {finding.found}\n")
    if finding.fix:
        stream.write(f"      do this: {finding.fix}\n")
