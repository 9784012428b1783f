"""`toolkit doctor`: each check is shown a host on which the thing is really broken."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.doctor import check_builds, check_host
from toolkit.doctor.check_cluster import check_hostfile
from toolkit.doctor.report import doctor
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
    by_name = {finding.check: finding for finding in check_builds.check_versions(tmp_path / "constraints.txt")}
    assert by_name["torch"].status == "warn"
    assert by_name["torch"].found.endswith("tested with 2.9.9")
    assert by_name["torch"].fix == "if it misbehaves: pip install torch==2.9.9"
    assert by_name["deepspeed"].status == "ok"


def test_versions_of_this_environment_are_the_pinned_ones() -> None:
    assert [finding for finding in check_builds.check_versions() if finding.status != "ok"] == []


def test_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check_builds.check_compiler()
    assert (finding.status, finding.found) == ("fail", "no 'c++' on PATH")
    assert "apt-get install g++" in finding.fix


def test_compiler_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = script(tmp_path / "bin", "broken-c++", "exit 1")
    monkeypatch.setenv("CXX", str(broken))
    finding = check_builds.check_compiler()
    assert (finding.status, finding.found) == ("fail", f"{broken} does not run")


def test_no_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check_builds.check_ninja()
    assert (finding.status, finding.found) == ("fail", "none on PATH, and DeepSpeed's operators are built with it")
    assert finding.fix in (f"put {Path(sys.executable).parent} first on PATH", "pip install ninja")


def test_two_ninjas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = script(tmp_path / "first", "ninja", "echo 1.11.1")
    second = script(tmp_path / "second", "ninja", "echo 1.12.0")
    monkeypatch.setenv("PATH", f"{first.parent}{os.pathsep}{second.parent}{os.pathsep}{os.environ['PATH']}")
    finding = check_builds.check_ninja()
    assert finding.status == "warn"
    assert f"1.11.1 at {first}, 1.12.0 at {second}" in finding.found
    assert "builds start anew" in finding.found
    assert finding.fix in (f"in every shell: export PATH={Path(sys.executable).parent}:$PATH", "uninstall all but one")


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


def test_torchvision_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = check_builds.check_torchvision()
    assert finding.status == "fail"
    assert "which breaks transformers too: RuntimeError: operator nms does not exist" in finding.found
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
    assert "--master_port" in finding.fix
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
    assert finding.fix.startswith("mount a tmpfs")


def test_memlock_matters_with_a_gpu() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "from toolkit.doctor.check_host import check_memlock\n"
        "print(check_memlock(has_gpu=True).status, check_memlock(has_gpu=False).status, check_memlock(has_gpu=True).fix)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("warn ok `ulimit -l unlimited`")


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
        doctor(io.StringIO(), tmp_path / "none")


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
    assert "fail  port: MASTER_PORT='x'\n" in broken.getvalue()
    assert f"warn  build locks: {lock} was left by a killed build" in broken.getvalue()
    assert f"      do this: rm {lock}\n" in broken.getvalue()
    for check in ("python", "torch", "ninja", "host memory", "CPU", "port", "launcher files"):
        assert f" {check}: " in report.getvalue()


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
    assert f"->rm{lock}" in "".join(report.getvalue().split())
