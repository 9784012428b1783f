"""`toolkit doctor`: each check is shown a host on which the thing is really broken."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.cli import verbs
from toolkit.cli.argument_types import quantity
from toolkit.doctor import check_builds, check_host, check_versions
from toolkit.doctor.check_cluster import check_hostfile
from toolkit.doctor.report import Wanted, doctor
from toolkit.errors import LaunchError


@pytest.fixture(autouse=True)
def clean_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home, a current folder and caches of our own, and none of the variables the checks look at."""
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "CXX",
        "DS_ENV_FILE",
        "OMP_NUM_THREADS",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))


def script(folder: Path, name: str, line: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_versions_against_the_tested_ones(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# tested\ntorch==2.9.9\ndeepspeed==0.19.8\n")
    by_name = {finding.check: finding for finding in check_versions.check_versions(tmp_path / "constraints.txt")}
    assert by_name["torch"].status == "warn"
    assert by_name["torch"].found.endswith("tested with 2.9.9")
    assert by_name["torch"].fix == "if it misbehaves: pip install torch==2.9.9"
    assert by_name["deepspeed"].status == "ok"


def test_versions_of_this_environment_are_the_pinned_ones() -> None:
    assert [finding for finding in check_versions.check_versions() if finding.status != "ok"] == []


def test_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check_builds.check_compiler()
    assert (finding.status, finding.found) == ("fail", "no 'c++' on PATH")
    assert finding.fix == "apt-get install g++, or set CXX"


def test_compiler_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = script(tmp_path / "bin", "broken-c++", "exit 1")
    monkeypatch.setenv("CXX", str(broken))
    finding = check_builds.check_compiler()
    assert (finding.status, finding.found) == ("fail", f"{broken} does not run")


def test_no_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check_builds.check_ninja()
    assert (finding.status, finding.found) == ("fail", "none on PATH")
    assert finding.why.startswith("DeepSpeed's operators are built with it")
    assert finding.fix in (f"export PATH={Path(sys.executable).parent}:$PATH", "pip install ninja")


def test_two_ninjas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = script(tmp_path / "first", "ninja", "echo 1.11.1")
    second = script(tmp_path / "second", "ninja", "echo 1.12.0")
    monkeypatch.setenv("PATH", f"{first.parent}{os.pathsep}{second.parent}{os.pathsep}{os.environ['PATH']}")
    finding = check_builds.check_ninja()
    assert finding.status == "warn"
    assert f"1.11.1 at {first}, 1.12.0 at {second}" in finding.found
    assert "builds start anew" in finding.found
    assert finding.fix in (
        f"in every shell: export PATH={Path(sys.executable).parent}:$PATH",
        "pip uninstall ninja, or apt-get remove ninja-build",
    )


def test_one_ninja_under_two_names_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{own}")
    assert check_builds.check_ninja().status == "ok"


def test_stale_build_lock(tmp_path: Path) -> None:
    lock = tmp_path / "extensions" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (finding,) = check_builds.check_build_locks()
    assert finding.status == "warn"
    assert finding.found.startswith(f"{lock} was left by a killed build; ")
    assert finding.fix == f"rm {lock}"


def test_lock_of_a_build_that_is_running(tmp_path: Path) -> None:
    lock = tmp_path / "extensions" / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", "import sys; f = open(sys.argv[1], 'w'); print('ready', flush=True); input()"]
    with subprocess.Popen([*command, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        (finding,) = check_builds.check_build_locks()
        builder.communicate("\n")
    assert (finding.status, finding.found) == ("warn", f"process {builder.pid} is building cpu_adam")
    assert finding.fix == f"wait for it: tail --pid={builder.pid} -f /dev/null"


def test_torchvision_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = check_versions.check_compiled()
    assert finding.status == "fail"
    assert "which can break transformers too: RuntimeError: operator nms does not exist" in finding.found
    assert finding.fix.startswith("pip uninstall torchvision")


def test_libaio_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check_builds.check_libaio()
    assert finding.status == "warn"
    assert "offload to NVMe cannot be built" in finding.found
    assert finding.fix == "for NVMe only: apt-get install libaio-dev"


def test_port_in_use() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        finding = check_host.check_port(str(port))
    assert (finding.status, finding.found) == ("fail", f"{port} is in use")
    assert re.match(r"launch with --master_port \d+ \(accelerate: --main_process_port\), or end the run", finding.fix)
    assert check_host.check_port(str(port)).found == f"{port} is free"


@pytest.mark.parametrize("port", ["80000", "0", "abc"])
def test_port_that_is_none(port: str) -> None:
    finding = check_host.check_port(port)
    assert (finding.status, finding.found) == ("fail", f"MASTER_PORT={port!r}")
    assert "1 to 65535" in finding.fix


def test_stray_launcher_files(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("a slots=2\n")
    Path(".deepspeed_env").write_text("NCCL_DEBUG=INFO\nHF_HOME=/data\n")
    first, second = check_host.check_launcher_files(hostfile)
    assert first.found == f"{hostfile} exists: `deepspeed` without --hostfile runs on the hosts it lists"
    assert "sets HF_HOME, NCCL_DEBUG on the other hosts of every run" in second.found
    assert (first.status, second.status) == ("warn", "warn")


def test_no_launcher_files(tmp_path: Path) -> None:
    (finding,) = check_host.check_launcher_files(tmp_path / "none")
    assert finding.status == "ok"


def test_ranks_left_in_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    first, *rest = check_host.check_environment()
    assert first.found == "RANK, WORLD_SIZE set in this shell: plain `python recipe.py` would wait for other ranks"
    assert first.fix == "unset RANK WORLD_SIZE"
    assert "DS_ACCELERATOR=cpu: DeepSpeed uses this device and looks for no other" in [
        finding.found for finding in rest
    ]


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    finding = check_host.check_disk("disk", tmp_path / "not" / "yet")
    assert finding.found.endswith(f"GiB free at {tmp_path / 'not' / 'yet'}")


def test_shared_memory_that_is_not_mounted(tmp_path: Path) -> None:
    finding = check_host.check_shared_memory(tmp_path / "shm")
    assert (finding.status, finding.found) == ("fail", f"{tmp_path / 'shm'}: No such file or directory")
    assert finding.fix == f"mkdir -p {tmp_path / 'shm'} && mount -t tmpfs tmpfs {tmp_path / 'shm'}"


def test_hostfile_with_a_malformed_line(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# two hosts\na slots=2\nb\n")
    with pytest.raises(LaunchError) as caught:
        list(check_hostfile(tmp_path / "hosts"))
    assert caught.value.what == f"{tmp_path / 'hosts'}, line 3: 'b'"
    assert caught.value.expected == "`name slots=N`, each host once"


def test_hostfile_with_a_host_twice(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2\na slots=2\n")
    with pytest.raises(LaunchError, match="line 2: 'a slots=2' names a host twice"):
        list(check_hostfile(tmp_path / "hosts"))


def test_hostfile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file or directory"):
        doctor(io.StringIO(), Wanted(tmp_path / "none"))


def test_hosts_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin", "ssh", "echo 'Permission denied (publickey).' >&2; exit 255")
    script(tmp_path / "bin", "pdsh", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + "/bin")
    (tmp_path / "hosts").write_text("localhost slots=2\nno-such-host.invalid slots=2\n")
    file, refused, unknown = check_hostfile(tmp_path / "hosts")
    assert file.found == f"2 hosts, 4 ranks in {tmp_path / 'hosts'}"
    assert refused.status == "fail"
    assert refused.found.endswith(": Permission denied (publickey).")
    assert refused.fix == "make `ssh localhost true` work unasked"
    assert (unknown.status, unknown.found) == ("fail", "the name does not resolve")


def test_report_and_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = io.StringIO()
    assert doctor(report) in (0, 2)  # this host's own state decides
    lock = tmp_path / "extensions" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("MASTER_PORT", "x")
    broken = io.StringIO()
    assert doctor(broken) == 2
    assert "fail  port: MASTER_PORT='x'\n      why: the ranks meet there; " in broken.getvalue()
    assert f"warn  build locks: {lock} was left by a killed build" in broken.getvalue()
    assert f"      do this: rm {lock}\n" in broken.getvalue()
    for check in ("python", "torch", "ninja", "host memory", "CPU", "port", "launcher files", "gloo interface"):
        assert f" {check}: " in report.getvalue()


def test_what_has_to_be_repaired_comes_last_and_first_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extensions" / "fused_adam").mkdir(parents=True)
    (tmp_path / "extensions" / "fused_adam" / "lock").touch()
    monkeypatch.setenv("MASTER_PORT", "x")
    report = io.StringIO()
    doctor(report)
    states = [line.split()[0] for line in report.getvalue().splitlines()[:-1] if not line.startswith("      ")]
    assert states == sorted(states, key=["ok", "fail", "warn"].index) and set(states) == {"ok", "fail", "warn"}
    assert re.fullmatch(r"\d+ ok, \d+ to know, \d+ to repair", report.getvalue().splitlines()[-1])


def test_verbose_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = io.StringIO(), io.StringIO()
    doctor(short)
    doctor(long, verbose=True)
    findings = [line for line in long.getvalue().splitlines() if not line.startswith("      ")][:-1]
    assert long.getvalue().count("      why: ") == len(findings) > short.getvalue().count("      why: ")


def test_json_has_the_worst_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "x")
    report = io.StringIO()
    assert doctor(report, as_json=True) == 2
    findings = json.loads(report.getvalue())
    assert findings[0]["status"] == "fail" and findings[-1]["status"] == "ok"
    assert all(finding["why"] and bool(finding["fix"]) == (finding["status"] != "ok") for finding in findings)
    unread = io.StringIO()
    assert doctor(unread, Wanted(tmp_path / "none"), as_json=True) == 2
    (finding,) = json.loads(unread.getvalue())
    assert finding["found"].endswith("none': No such file or directory") and finding["fix"] == "correct --hostfile"


def test_json_is_all_that_the_verb_prints(capsys: pytest.CaptureFixture[str]) -> None:
    verbs.main(["doctor", "--json", "--write-env", "--parameters", "7b"])
    assert "7 billion parameters" in next(
        finding["found"] for finding in json.loads(capsys.readouterr().out) if finding["check"] == "offload"
    )


@pytest.mark.parametrize(("text", "number"), [("7b", 7 * 10**9), ("1.5B", 1_500_000_000), ("350m", 35 * 10**7), ("7e9", 7 * 10**9), ("125_000_000", 125 * 10**6)])  # fmt: skip
def test_a_number_of_parameters(text: str, number: int) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["7q", "", "b", "-1", "0", "1e99b"])
def test_what_is_no_number_of_parameters(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.main(["doctor", f"--parameters={text}"]) == 2
    assert f"{text!r} is not a number such as 7b, 350m or 7e9" in capsys.readouterr().err


def test_a_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    code = "import sys; from toolkit.cli.verbs import main; sys.exit(main(['doctor']))"
    path = os.pathsep.join([str(tmp_path), str(Path(check_host.__file__).parents[2])])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "fail  devices: torch cannot be imported: libcudart.so.13: cannot open shared object file" in done.stdout
    assert "do this: pip install --force-reinstall torch" in done.stdout


def test_report_on_a_terminal_keeps_paths_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    lock = tmp_path / "extensions" / "fused[adam]" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    report = Terminal()
    doctor(report)
    assert "\N{HORIZONTAL ELLIPSIS}" not in report.getvalue()
    assert f"->rm{shlex.quote(str(lock))}" in "".join(report.getvalue().split())
