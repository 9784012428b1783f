"""Two hosts out of one: network namespaces joined by a cable, each with a name and an sshd of its own.

They share the file system, as many clusters do. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PROGRAMS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "hostname": "hostname",
    "sshd": "openssh-server",
}
"""What it takes, and the package of Debian and Ubuntu that has it."""
START_S = 10.0

SSHD_CONFIG = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
"""
SSH_CONFIG = """\
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ServerAliveInterval 2
  ServerAliveCountMax 3
"""


@dataclass(frozen=True)
class Host:
    """One of the two. `namespace` is its network's name; `keeper` the process that holds its host name."""

    namespace: str
    name: str
    address: str
    folder: Path
    keeper: int

    def popen(self, *command: str, cwd: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start `command` on this host; standard output and error together."""
        return subprocess.Popen(
            [*self._inside(), *command],
            cwd=cwd,
            env={**environment, "PATH": f"{self.folder}/bin:{environment['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _inside(self) -> list[str]:
        return ["nsenter", "--target", str(self.keeper), "--net", "--uts", "--"]

    def lose_power(self) -> None:
        """Every process of it ends, and nobody is told: no connection is closed or refused."""
        run("ip", "-n", self.namespace, "link", "set", "eth0", "down")
        self.kill()

    def kill(self) -> None:
        """Every process of it at once."""
        for pid in processes(self.namespace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes(namespace: str) -> list[int]:
    return [int(word) for word in run("ip", "netns", "pids", namespace).split()]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def why_not() -> str:
    """Why two hosts cannot be built here; empty when they can."""
    missing = [name for name in PROGRAMS if (SSHD if name == "sshd" else shutil.which(name)) is None]
    if missing:
        packages = " ".join(sorted({PROGRAMS[name] for name in missing}))
        return f"no {', '.join(missing)}; to run it: apt-get install {packages}"
    if os.geteuid() != 0:
        return "only root may make network namespaces; to run it: be root"
    if subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode != 0:
        return "this machine admits no network namespaces"
    return ""


class TwoHosts:
    """A pair that can be broken and mended. Host names are NAME-a and NAME-b."""

    def __init__(self, folder: Path, name: str, network: str) -> None:
        self._folder, self._name, self._network = folder, name, network
        self.a, self.b = (self._host(letter, number) for number, letter in enumerate("ab", 1))

    def _host(self, letter: str, number: int, keeper: int = 0) -> Host:
        name = f"{self._name}-{letter}"
        return Host(name, name, f"{self._network}.{number}", self._folder, keeper)

    def build(self) -> None:
        """Keys, namespaces, the cable, and a running sshd on both."""
        for key in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / key))
        (self._folder / "ssh_config").write_text(SSH_CONFIG.format(folder=self._folder))
        (self._folder / "bin").mkdir()
        wrapper = self._folder / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self._folder}/ssh_config "$@"\n')
        wrapper.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        run("ip", "netns", "add", self.a.namespace)
        run("ip", "netns", "add", self.b.namespace)
        run("ip", "link", "add", "eth0", "netns", self.a.namespace, "type", "veth", "peer", "name", "eth0", "netns", self.b.namespace)  # fmt: skip
        for host in (self.a, self.b):
            run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            run("ip", "-n", host.namespace, "link", "set", "lo", "up")
        self.mend()

    def mend(self) -> None:
        """Plug the cable in, and start what does not run."""
        for letter, number in (("a", 1), ("b", 2)):
            host: Host = getattr(self, letter)
            run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
            if host.keeper not in processes(host.namespace):
                setattr(self, letter, self._host(letter, number, self._start_sshd(host)))

    def _start_sshd(self, host: Host) -> int:
        config = self._folder / f"sshd_{host.name}"
        config.write_text(SSHD_CONFIG.format(folder=self._folder, address=host.address))
        # exec all the way: the pid that Popen knows becomes sshd's, inside of both namespaces.
        script = f"hostname {host.name}; exec {SSHD} -D -f {config} -E {self._folder}/{host.name}.log"
        command = ["ip", "netns", "exec", host.namespace, "unshare", "--uts", "sh", "-c", script]
        keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        # In /proc/net/tcp, 0A is a listening socket.
        while " 0A " not in run("ip", "netns", "exec", host.namespace, "cat", "/proc/net/tcp"):
            assert keeper.poll() is None and time.monotonic() < deadline, "sshd does not start"
            time.sleep(0.05)
        return keeper.pid

    def destroy(self) -> None:
        """Processes, namespaces, cable."""
        for host in (self.a, self.b):
            host.kill()
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Two hosts until the block ends; their keys and settings are in `folder`."""
    pair = TwoHosts(folder, f"host{os.getpid()}", f"10.231.{os.getpid() % 250}")
    try:
        pair.build()
        yield pair
    finally:
        pair.destroy()
