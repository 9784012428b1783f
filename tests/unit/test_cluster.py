"""`toolkit doctor --hostfile`: the real probe, run by an ssh that stays on this machine, and what its answers mean."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.doctor import check_cluster, host_probe, host_session
from toolkit.doctor.check_cluster import PACKAGES, check_hostfile
from toolkit.doctor.check_network import Meeting, check_network
from toolkit.doctor.compare_hosts import Clock, compare
from toolkit.doctor.finding import Finding
from toolkit.doctor.host_session import Session

SSH = """\
#!/bin/sh
# The host is the first word that is no option; what follows it, the command.
while :; do case "$1" in -o|-p) shift 2;; -G) echo "hostname localhost"; echo "serveraliveinterval ${ALIVE:-0}"; exit;; *) break;; esac; done
host=$1; shift
case "$host" in
    deaf) exec sleep 60;;
    chatty) echo "Welcome to $host"; exec sh -c "$*";;
    bare) echo "sh: 1: python: not found" >&2; exit 127;;
    *) exec sh -c "$*";;
esac
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> Path:
    """A project's folder with one recipe, and the ssh above first on PATH."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in (("ssh", SSH), ("pdsh", "#!/bin/sh\n"), ("hostname", "#!/bin/sh\necho 127.0.0.1 127.0.0.2\n")):
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    folder = tmp_path / "project"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "x.py").write_text("recipe = 1\n")
    for name in os.environ:
        if name.startswith(("HF_", "OMP_", "TOKENIZERS_", "TOOLKIT_", "DS_", "GLOO_", "TORCH_", "PDSH_", "NCCL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.chdir(folder)
    return folder


def ask(folder: Path, *hosts: str) -> list[Finding]:
    (folder / "hostfile").write_text("".join(f"{host} slots=1\n" for host in hosts))
    return list(check_hostfile(folder / "hostfile"))


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_two_good_hosts(project: Path, port: int) -> None:
    findings = ask(project, "one", "two")
    for host in ("one", "two"):
        (finding,) = of(findings, f"host {host}")
        assert finding.status == "ok", finding
        assert re.fullmatch(r"\S+: python \S+, the same packages and files, clock [+-]0\.\d\d s", finding.found)
    (network,) = of(findings, "network")
    assert network.found == f"the ranks meet at 127.0.0.1, port {port} on one, two from 127.0.0.1 over lo"
    assert [finding.check for finding in findings if finding.status != "ok"] == ["ssh keep-alive"]


def test_keep_alive_that_is_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIVE", "15")
    assert of(ask(project, "one"), "ssh keep-alive") == []


def test_hosts_that_do_not_answer_as_they_should(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_session, "CONNECT_S", 1)
    monkeypatch.setattr(host_session.Session.ask, "__kwdefaults__", {"timeout_s": 5.0})
    findings = ask(project, "deaf", "chatty", "bare")
    (deaf,), (chatty,), (bare,) = (of(findings, f"host {name}") for name in ("deaf", "chatty", "bare"))
    assert (deaf.status, deaf.found) == ("fail", "no answer within 5 s")
    assert (chatty.status, chatty.found) == ("fail", "the answers are not the probe's")
    assert chatty.fix == "`ssh chatty true` must print nothing: see its shell profile"
    assert bare.found == f"{sys.executable} does not run there: sh: 1: python: not found"
    assert bare.fix.startswith("install the same environment under the same path")


def test_port_in_use_on_the_first_host(project: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        (network,) = of(ask(project, "one", "two"), "network")
    assert (network.status, network.found) == ("fail", f"port {port} on one: Address already in use")
    assert network.fix == "end the run that holds it, or launch with another --master_port"


def test_a_first_host_without_an_address(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "hostname").write_text("#!/bin/sh\n")
    (network,) = of(ask(project, "one", "two"), "network")
    assert network.found == "`ssh one hostname -I` names no address, and the launcher asks it for the master's"
    assert network.fix == "launch with --master_addr ADDRESS of that host"


class Scripted(Session):
    """A host on a network that this machine does not have."""

    def __init__(self, host: str, reaches: tuple[str, ...] = ()) -> None:
        self.host, self.reaches = host, reaches

    async def ask(self, action: str, *arguments: object, timeout_s: float = 1.0) -> Any:
        if action == "addresses":
            return ["172.17.0.1", "10.0.0.1"]
        if action == "listen":
            return ""
        return {"address": "10.0.0.2", "interface": "ib0"} if arguments[0] in self.reaches else {"error": "timed out"}


def test_a_first_address_that_others_do_not_reach() -> None:
    meeting = asyncio.run(check_network([Scripted("a"), Scripted("b", ("10.0.0.1",))], 29500))
    (other,) = meeting.findings
    assert meeting.over == {"": "10.0.0.1", "b": "ib0"}
    assert (other.status, other.found) == ("fail", "b does not reach 172.17.0.1, port 29500: timed out")
    assert other.fix == "launch with --master_addr 10.0.0.1, which every host reaches"
    (none,) = asyncio.run(check_network([Scripted("a"), *(Scripted(name) for name in "bcdef")], 29500)).findings
    assert none.found.endswith("d does not reach 172.17.0.1, port 29500: timed out; and 2 more hosts")
    assert none.fix.startswith("open port 29500")


class Elsewhere(Session):
    """A host with a disk of its own."""

    def __init__(self, host: str) -> None:
        self.host = host

    async def ask(self, action: str, *arguments: object, timeout_s: float = 1.0) -> Any:
        assert action == "exists" and Path(str(arguments[0])).parent == Path.cwd()
        return False


def test_a_folder_that_others_do_not_see(project: Path) -> None:
    (finding,) = asyncio.run(check_cluster._check_shared([Elsewhere("h1"), Elsewhere("h2")]))
    assert (finding.status, finding.found) == ("warn", f"h1, h2 do not see what is written in {project}")
    assert "--output_dir on a file system that all hosts share" in finding.fix
    assert [path.name for path in project.iterdir()] == ["recipes"]
    assert of(ask(project, "one"), "shared folder") == []


def test_a_variable_that_stays_behind(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # ssh of this test keeps the environment; a file of the launcher that says otherwise does not.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (project / ".deepspeed_env").write_text("OMP_NUM_THREADS=8\n\n")
    broken, lost = of(ask(project, "one", "two"), "variables")
    assert (broken.status, broken.fix) == ("fail", f"sed -i 2d {project / '.deepspeed_env'}")
    assert broken.found.startswith(f"{project / '.deepspeed_env'}, line 2: ")
    assert lost.found == "OMP_NUM_THREADS (threads of each rank) is not as here on one, two"
    assert lost.fix == f"{project / '.deepspeed_env'} says otherwise: correct it there, or here"


@pytest.fixture
def facts(project: Path) -> dict[str, Any]:
    return host_probe.facts(str(project), list(PACKAGES), [])


GOOD = Clock(0.01, 0.02)


def only(here: dict[str, Any], change: dict[str, Any], slots: int = 1, clock: Clock = GOOD) -> Finding:
    (finding,) = compare("b", slots, here, {**here, **change}, clock)
    return finding


def test_other_versions(facts: dict[str, Any]) -> None:
    assert facts["versions"]["torch"]
    other = only(facts, {"versions": {**facts["versions"], "torch": "1.0", "numpy": None}})
    assert other.status == "fail"
    torch, numpy = facts["versions"]["torch"], facts["versions"]["numpy"]
    assert other.found == f"torch 1.0 ({torch} here), numpy missing ({numpy} here)"
    assert other.fix == f"there: {sys.executable} -m pip install torch=={torch} numpy=={numpy}"
    python = only(facts, {"python": "3.99.0"})
    assert (python.status, python.found) == ("fail", f"python 3.99.0, {facts['python']} here")
    patch = only(facts, {"python": facts["python"].rpartition(".")[0] + ".99"})
    assert patch.status == "warn"


def test_other_files(facts: dict[str, Any], project: Path) -> None:
    gone = only(facts, {"folder": False})
    assert gone.found == f"{project} is not there, and the launcher starts the ranks in it"
    assert f"rsync -a {project}/ b:{project}/" in gone.fix
    old = only(facts, {"recipes": "0123", "toolkit": "4567"})
    assert (old.status, old.found) == (
        "fail",
        "toolkit and recipes differ from here: ranks would not run the same code",
    )
    commit = only({**facts, "git": "abc"}, {"git": "def+changes"})
    assert (commit.status, commit.found) == (
        "warn",
        "git commit def+changes, abc here; toolkit and recipes are the same",
    )
    none = only(facts, {"toolkit": "", "toolkit_error": "No module named 'toolkit'"})
    assert none.found == "the toolkit cannot be imported (No module named 'toolkit')"


def test_an_emptier_cache(facts: dict[str, Any]) -> None:
    finding = only({**facts, "cached": ["models/m", "data/d"]}, {"cached": ["data/d"], "cache": "/c"})
    assert (finding.status, finding.found) == ("warn", "its cache /c lacks m")
    assert "ssh b " in finding.fix and " fetch m;" in finding.fix


def test_slots_and_clock(facts: dict[str, Any]) -> None:
    many = only(facts, {"devices": 4}, slots=8)
    assert (many.found, many.fix) == ("slots=8 and 4 GPUs", "write slots=4 into the hostfile")
    assert only(facts, {"devices": 0, "cores": 2}, slots=3).found == "slots=3 and 2 cores, no GPU"
    late = only(facts, {}, clock=Clock(-3.5, 0.1))
    assert (late.status, late.found) == ("warn", "its clock is 3.5 s behind this one")
    slow_answer = only(facts, {}, clock=Clock(1.5, 0.9))
    assert slow_answer.status == "ok"


ETH = {"name": "eth0", "addresses": ["10.0.0.2"], "up": True}
BRIDGE = {"name": "br-4f", "addresses": ["172.18.0.1"], "up": True}


def test_an_interface_that_a_host_lacks(facts: dict[str, Any]) -> None:
    network = {"name": "b", "resolves": ["127.0.1.1"], "interfaces": [ETH], "route": "eth0"}
    wrong = only(facts, {"network": network, "variables": {"GLOO_SOCKET_IFNAME": "ib0"}})
    assert (wrong.check, wrong.status) == ("host b", "fail")
    assert wrong.found.startswith("GLOO_SOCKET_IFNAME=ib0, and ib0 is no interface of this host that is up")
    assert only(facts, {"network": network, "variables": {"GLOO_SOCKET_IFNAME": "eth0"}}).status == "ok"


def test_nccl_that_would_meet_over_another_network(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def host(name: str, *interfaces: dict[str, Any]) -> check_cluster.Reached:
        network = {"name": name, "resolves": [], "interfaces": list(interfaces), "route": "eth0"}
        return check_cluster.Reached(Scripted(name), {**facts, "devices": 8, "network": network}, GOOD)

    first = {**ETH, "addresses": ["10.0.0.1"]}
    meeting = Meeting([], {"": "10.0.0.1", "b": "eth0"})
    (wrong,) = check_cluster._check_nccl([host("a", first), host("b", BRIDGE, ETH)], meeting)
    assert (wrong.status, wrong.found) == ("warn", "br-4f on b, where the way to the others goes over eth0")
    assert wrong.fix == "export NCCL_SOCKET_IFNAME=eth0, then `toolkit doctor --hostfile FILE --write-env`"
    assert "wait in vain" in wrong.why
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    (right,) = check_cluster._check_nccl([host("a", first), host("b", BRIDGE, ETH)], meeting)
    assert (right.status, right.found) == ("ok", "on every host the one on the way to the others")


def test_digest_sees_names_and_contents(project: Path) -> None:
    before = host_probe.digest(project / "recipes")
    (project / "recipes" / "x.py").write_text("recipe = 2\n")
    after = host_probe.digest(project / "recipes")
    (project / "recipes" / "x.py").rename(project / "recipes" / "y.py")
    assert len({before, after, host_probe.digest(project / "recipes"), host_probe.digest(project / "none")}) == 4
