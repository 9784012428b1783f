"""`toolkit doctor --nvme` and what offload asks of a host: real files on this disk, and disks that this host does not have."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.cli import verbs
from toolkit.doctor import check_nvme, disk_speed
from toolkit.doctor.check_offload import check_offload, check_pinned, named
from toolkit.doctor.disk_speed import Disk, Speed, disk_of
from toolkit.doctor.finding import Check
from toolkit.errors import LaunchError

GIB = 2**30
MOUNTS = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
23 22 0:40 / /dev/shm rw - tmpfs tmpfs rw,size=8g
24 22 0:55 / /home rw - nfs4 server:/home rw,vers=4.2
25 22 8:17 / /mnt/old\\040disk rw - xfs /dev/sdb1 rw
26 22 0:60 / /over rw - overlay overlay rw
27 22 0:61 / /home/me/s3 rw - fuse.s3fs s3fs rw
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Mounts and block devices as /proc and /sys would show them."""
    (tmp_path / "mountinfo").write_text(MOUNTS)
    for disk, part, number, rotates in (("nvme0n1", "nvme0n1p2", "259:2", "0"), ("sdb", "sdb1", "8:17", "1")):
        (tmp_path / "block" / disk / "queue").mkdir(parents=True)
        (tmp_path / "block" / disk / "queue" / "rotational").write_text(f"{rotates}\n")
        (tmp_path / "block" / disk / part).mkdir()
        (tmp_path / "numbers").mkdir(exist_ok=True)
        (tmp_path / "numbers" / number).symlink_to(tmp_path / "block" / disk / part)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "disk"),
    [
        ("/scratch/x", Disk("ext4", "/dev/nvme0n1p2", "disk")),
        ("/dev/shm/x", Disk("tmpfs", "tmpfs", "memory")),
        ("/home/me", Disk("nfs4", "server:/home", "network")),
        ("/home/me/s3/x", Disk("fuse.s3fs", "s3fs", "network")),
        ("/mnt/old disk/x", Disk("xfs", "/dev/sdb1", "rotational")),
        ("/over", Disk("overlay", "overlay", "unknown")),
        ("/homework", Disk("ext4", "/dev/nvme0n1p2", "disk")),
    ],
)
def test_the_kind_of_disk(host: Path, folder: str, disk: Disk) -> None:
    assert disk_of(Path(folder), host / "mountinfo", host / "numbers") == disk


def test_disks_that_offload_should_not_use() -> None:
    place = Path("/x")
    memory = check_nvme.check_kind(place, Disk("tmpfs", "tmpfs", "memory"))
    assert (memory.status, memory.found) == (
        "fail",
        "/x is on tmpfs (tmpfs), which is memory: the states would take there what offload is to save",
    )
    assert memory.fix.startswith("set parallel.nvme_path to a folder on a local NVMe disk: lsblk")
    assert memory.why == "offload reads and writes all optimizer states at every step, and waits for them"
    network = check_nvme.check_kind(place, Disk("nfs4", "server:/home", "network"))
    assert (network.status, network.found) == (
        "warn",
        "/x is on nfs4 (server:/home), which lies behind a network, and is shared with others",
    )
    turns = check_nvme.check_kind(place, Disk("xfs", "/dev/sdb1", "rotational"))
    assert (turns.status, turns.found) == (
        "ok",
        "/x is on xfs (/dev/sdb1), which the kernel takes for one that rotates",
    )
    assert check_nvme.check_kind(place, Disk("", "", "unknown")).found == "/x is on an unknown file system"


def test_room_for_the_states() -> None:
    some = check_nvme.check_room(Path("/x"), 12 * 10**9, None)
    assert (some.status, some.found) == ("ok", "11.2 GiB free: the states of 1 billion parameters (12 bytes each)")
    less = check_nvme.check_room(Path("/x"), 12 * 10**9, 7 * 10**9)
    assert less.status == "fail" and less.found.endswith("; those of 7 billion take 78.2 GiB")
    assert less.fix == "free 67 GiB: du -xh /x | sort -h | tail"
    full = check_nvme.check_room(Path("/x"), 2**20, None)
    assert (full.status, full.fix) == ("warn", "free some: du -xh /x | sort -h | tail")


def test_what_a_speed_means() -> None:
    check = Check("NVMe speed", "so long the device waits")
    fast = check_nvme.check_speed(check, Speed(3e9, 6e9, direct=True), None)
    assert (fast.status, fast.found) == (
        "ok",
        "writes 3.00 GB/s, reads 6.00: 6.0 s a step for the states of 1 billion parameters on this disk",
    )
    slow = check_nvme.check_speed(check, Speed(0.12e9, 6e9, direct=False), 7 * 10**9)
    assert slow.status == "warn" and "714.0 s a step for the states of 7 billion parameters" in slow.found
    assert "through the kernel's cache" in slow.found
    assert slow.fix == "set parallel.nvme_path to a folder on a faster disk, or --parallel.offload_optimizer cpu"


def test_the_verb_measures_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    verbs.main(["doctor", "--nvme", str(tmp_path), "--parameters", "1m", "--json"])
    assert time.perf_counter() - began < 30  # two seconds of it, on a quiet host
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["NVMe disk"]["found"].startswith(f"{tmp_path} is on ")
    assert "for the states of 1 million parameters" in found["NVMe speed"]["found"]
    assert "the states of 1 million parameters take 0.0 GiB" in found["offload"]["found"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refused", ["O_TMPFILE", "O_DIRECT", "both", "first write"])
def test_file_systems_that_know_less(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open, real_write = os.open, os.pwrite

    def limited(path: os.PathLike[str] | str, flags: int, mode: int = 0o777, **others: int) -> int:
        if refused in ("O_TMPFILE", "both") and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if refused in ("O_DIRECT", "both") and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, mode, **others)

    def write(descriptor: int, data: bytes, offset: int) -> int:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as info:
            flags = int(info.read().split("flags:")[1].split()[0], 8)
        if refused == "first write" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_write(descriptor, data, offset)

    monkeypatch.setattr(os, "open", limited)
    monkeypatch.setattr(os, "pwrite", write)
    speed = disk_speed.measure(tmp_path, 2**23, 0.2)
    assert speed.read > 0 and speed.write > 0
    assert speed.direct is False or refused == "O_TMPFILE"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A limit on the size of files ends the write as a full disk does."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from toolkit.doctor import check_nvme\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20 + 4096,) * 2)\n"
        "finding = check_nvme._check_measured(Path(sys.argv[1]), 2**26, None); print(finding.status, finding.found, finding.fix)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"fail {tmp_path} cannot be measured: ")
    assert list(tmp_path.iterdir()) == []
    none_left = check_nvme._check_measured(tmp_path, 0, None)
    assert none_left.found == f"{tmp_path} cannot be measured: No space left on device"
    assert none_left.fix == f"free some: df -h {tmp_path}; quota -s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_where_it_is_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from toolkit.doctor import disk_speed\n"
        "print('ready', flush=True); disk_speed.measure(Path(sys.argv[1]), 2**34, 60.0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(number)
        process.wait(30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "what"), [("none", "does not exist"), ("file", "is no folder")])
def test_no_folder_to_measure(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=what) as caught:
        list(check_nvme.check_nvme(tmp_path / name))
    assert caught.value.do == f"mkdir -p {tmp_path / name}, or name another folder"


def test_a_folder_that_is_on_no_disk() -> None:
    with pytest.raises(LaunchError, match=r"--nvme /proc: it (lies on no disk|cannot be written)"):
        list(check_nvme.check_nvme(Path("/proc")))


def test_memory_for_offloaded_states() -> None:
    assert list(check_offload(None)) == []
    (fits,) = check_offload(10**9, 32 * GIB)
    assert (fits.status, fits.found) == (
        "ok",
        "the states of 1 billion parameters take 16.8 GiB (18 bytes each), 32.0 are available",
    )
    (less,) = check_offload(7 * 10**9, 32 * GIB)
    assert less.status == "warn" and less.fix.startswith("--parallel.zero_stage 3 --parallel.offload_optimizer nvme")


def test_the_limit_of_pinned_memory() -> None:
    small = check_pinned(has_gpu=True, limit=2**23, available=64 * GIB)
    assert (small.status, small.found) == (
        "warn",
        "at most 8 MiB: the states of 466,033 parameters, where the memory that is available holds those of 3.82 billion",
    )
    assert small.fix.startswith("ulimit -l unlimited; for good: * - memlock unlimited in /etc/security/limits.conf")
    asked = check_pinned(has_gpu=True, parameters=7 * 10**9, limit=64 * GIB, available=512 * GIB)
    assert asked.found == "at most 64.0 GiB: the states of 3.82 billion parameters; those of 7 billion take 117.3 GiB"
    assert asked.status == "warn"
    assert check_pinned(has_gpu=True, parameters=10**9, limit=64 * GIB, available=512 * GIB).status == "ok"
    assert check_pinned(has_gpu=True, limit=resource.RLIM_INFINITY, available=GIB).found == "unlimited"
    without = check_pinned(has_gpu=False, limit=2**16, available=GIB)
    assert (without.status, without.found) == (
        "ok",
        "at most 0.0625 MiB; no GPU is here, and only beside one is memory pinned",
    )


def test_numbers_in_words() -> None:
    assert [named(count) for count in (7 * 10**9, 465_000_000, 999)] == ["7 billion", "465 million", "999"]
