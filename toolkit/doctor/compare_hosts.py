"""What the answers of a host's probe mean for a run that spans it and this host."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.doctor.check_interfaces import GLOO, Network, check_gloo
from toolkit.doctor.finding import Check, Finding

CLOCK_S = 1.0
"""More than this apart, clocks are worth a word."""

Facts = Mapping[str, Any]
"""See host_probe.facts."""


@dataclass(frozen=True)
class Clock:
    """A host's clock against this one's."""

    ahead_s: float
    error_s: float
    """Half the time that question and answer took."""


def compare(host: str, slots: int, here: Facts, there: Facts, clock: Clock) -> list[Finding]:
    """What is wrong with `host`; one finding that says how it is when nothing is."""
    name = f"host {host}"
    found = [
        *_software(Check(name, "ranks of one run must compute the same"), here, there),
        *_files(
            Check(name, "the launcher starts the same command in the same folder of every host"), host, here, there
        ),
        *_cache(Check(name, "each host reads models and data from its own disk"), host, here, there),
        *_devices(Check(name, "two ranks on one device halve its memory, and NCCL refuses them"), slots, there),
        *_clock(Check(name, "builds and logs compare times"), clock),
        *_interface(name, there),
    ]
    if found:
        return found
    same = f"python {there['python']}, the same packages and files, clock {clock.ahead_s:+.2f} s"
    return [Check(name, "the ranks of all hosts make up one run").ok(f"{there['hostname']}: {same}")]


def _interface(name: str, there: Facts) -> Iterator[Finding]:
    # Without the variable a run takes the route between the hosts (engine/hosts.py), whatever the name stands for.
    if setting := there["variables"].get(GLOO):
        finding = check_gloo(Network.of(there["network"]), setting)
        if finding.status != "ok":
            yield replace(finding, check=name)


def _software(check: Check, here: Facts, there: Facts) -> Iterator[Finding]:
    if here["python"] != there["python"]:
        same_minor = here["python"].rpartition(".")[0] == there["python"].rpartition(".")[0]
        fix = f"install Python {here['python']} at {sys.executable} there"
        yield (check.warn if same_minor else check.fail)(f"python {there['python']}, {here['python']} here", fix)
    wrong = {name: version for name, version in here["versions"].items() if there["versions"].get(name) != version}
    if wrong:
        found = ", ".join(
            f"{name} {there['versions'].get(name) or 'missing'} ({here} here)" for name, here in wrong.items()
        )
        pins = " ".join(f"{name}=={version}" for name, version in wrong.items() if version)
        yield check.fail(found, f"there: {sys.executable} -m pip install {pins}")
    if here["compiler"] != there["compiler"]:
        found = "a C++ compiler here and none there" if here["compiler"] else "a C++ compiler there and none here"
        yield check.warn(found, "apt-get install g++ on both: offload chooses its optimizer kernel by it")


def _files(check: Check, host: str, here: Facts, there: Facts) -> Iterator[Finding]:
    folder = Path.cwd()
    copy = f"share {folder}, or copy it: rsync -a {shlex.quote(f'{folder}/')} {shlex.quote(f'{host}:{folder}/')}"
    if not there["folder"]:
        yield check.fail(f"{folder} is not there, and the launcher starts the ranks in it", copy)
        return
    if not there["toolkit"]:
        yield check.fail(
            f"the toolkit cannot be imported ({there['toolkit_error']})", f"in {folder} there: make install"
        )
        return
    different = [what for what in ("toolkit", "recipes") if here[what] != there[what]]
    if different:
        yield check.fail(f"{' and '.join(different)} differ from here: ranks would not run the same code", copy)
    elif here["git"] != there["git"]:
        found = (
            f"git commit {there['git'] or 'unknown'}, {here['git'] or 'unknown'} here; toolkit and recipes are the same"
        )
        yield check.warn(found, copy)


def _cache(check: Check, host: str, here: Facts, there: Facts) -> Iterator[Finding]:
    missing = [entry.partition("/")[2] for entry in here["cached"] if entry not in there["cached"]]
    if missing and there["folder"] and there["toolkit"]:
        command = shlex.join([str(Path(sys.executable).with_name("toolkit")), "fetch", *missing])
        fix = f"if the recipe uses them: ssh {host} {command}; or share the folder and set TOOLKIT_CACHE"
        yield check.warn(f"its cache {there['cache']} lacks {', '.join(missing)}", fix)


def _devices(check: Check, slots: int, there: Facts) -> Iterator[Finding]:
    if there["devices"] and slots > there["devices"]:
        yield check.fail(
            f"slots={slots} and {there['devices']} GPUs", f"write slots={there['devices']} into the hostfile"
        )
    elif not there["devices"] and slots > there["cores"]:
        found = f"slots={slots} and {there['cores']} cores, no GPU"
        yield check.warn(found, f"write slots={there['cores']} into the hostfile")


def _clock(check: Check, clock: Clock) -> Iterator[Finding]:
    if abs(clock.ahead_s) - clock.error_s > CLOCK_S:
        found = f"its clock is {abs(clock.ahead_s):.1f} s {'ahead of' if clock.ahead_s > 0 else 'behind'} this one"
        fix = "on every host: apt-get install chrony, or timedatectl set-ntp true"
        yield check.warn(found, fix)
