"""Checks of the host: memory, disk, CPU, the port, and files or variables that change a launch without a word."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor import launcher_variables
from toolkit.doctor.finding import Check, Finding
from toolkit.processor import host_memory, meminfo

GIB = 2**30
LARGEST = "ps -eo pid,rss,comm --sort=-rss | head"
"""The command that shows who takes the memory."""

# What each of these does to a run, for those that are easily forgotten in a shell profile.
_VARIABLES = {
    "DS_ACCELERATOR": "DeepSpeed uses this device and looks for no other",
    "CUDA_VISIBLE_DEVICES": "the launcher sees only these devices",
    "OMP_NUM_THREADS": "threads of each rank",
    "KMP_AFFINITY": "`deepspeed --bind_cores_to_rank` refuses to start while it is set",
    "HF_HUB_OFFLINE": "hub names work only from the local cache",
    "HF_DATASETS_OFFLINE": "data sets by hub name work only from the local cache",
    "HF_HOME": "where hub files are kept",
    "TORCH_EXTENSIONS_DIR": "where compiled operators are kept",
    "TOOLKIT_CACHE": "where fetched checkpoints and data sets are kept",
    "DEEPSPEED_TIMEOUT": "minutes until a collective gives up",
    "DS_ENV_FILE": "the launcher reads this name instead of .deepspeed_env",
}
_LEFT_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_DEEPSPEED")


def check_memory() -> Finding:
    """Host memory that is free, within the limit of the container if there is one."""
    check = Check(
        "host memory", "a run that finds too little is killed by the system, which leaves exit code -9 and no word"
    )
    total, available = host_memory()
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if available < 4 * GIB:
        return check.warn(found, f"end other programs before a run: {LARGEST}")
    return check.ok(found)


def check_swap() -> Finding:
    """Swap in use."""
    check = Check("swap", "a run that swaps is slower by orders of magnitude, and nothing says so")
    memory = meminfo()
    used = memory["SwapTotal"] - memory["SwapFree"]
    found = f"{used / GIB:.1f} of {memory['SwapTotal'] / GIB:.1f} GiB used"
    if used > GIB:
        return check.warn(found, f"end what does not fit into memory: {LARGEST}")
    return check.ok(found)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Room for the buffers that the ranks and the loader workers of one host share."""
    check = Check(
        "shared memory",
        "ranks and loader workers hand each other data through it; where it is full they die of a bus error",
    )
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return check.fail(f"{folder}: {error.strerror}", f"mkdir -p {folder} && mount -t tmpfs tmpfs {folder}")
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {folder}"
    if usage.free < GIB:
        fix = f"mount -o remount,size=8G {folder}; for a container: start it with --shm-size=8g (or --ipc=host)"
        return check.warn(found, fix)
    return check.ok(found)


def check_disk(name: str, folder: Path) -> Finding:
    """Room on the disk of `folder`, which need not exist yet."""
    check = Check(name, "models, prepared data and checkpoints go there, and a checkpoint that does not fit is none")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if not os.access(there, os.W_OK):
        fix = f"chown {os.getuid()} {shlex.quote(str(there))}, as its owner; or work in another folder (cache: TOOLKIT_CACHE)"
        return check.fail(f"{there} cannot be written", fix)
    if free < 5 * GIB:
        fix = (
            f"free some (du -xh {shlex.quote(str(there))} | sort -h | tail): a checkpoint takes 12 bytes per parameter"
        )
        return (check.fail if free < GIB // 2 else check.warn)(found, fix)
    return check.ok(found)


def check_cpu() -> Finding:
    """CPU cores, and the types that they multiply in hardware, as torch sees them."""
    import torch

    cores = len(os.sched_getaffinity(0))
    # A private name of torch, and the one DeepSpeed asks before it takes fp16 on a CPU; without it the answer is no.
    asked = {
        name: getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False) for name in ("bf16", "fp16")
    }
    fast = ["fp32", *(name for name, supported in asked.items() if supported())]
    check = Check("CPU", "a run without a GPU computes on it, and optimizers that are offloaded do so beside one")
    return check.ok(f"{cores} cores; matrix products in {', '.join(fast)}")


def check_port(port: str) -> Finding:
    """Whether rank 0 could listen on `port`, on either kind of address."""
    check = Check("port", "the ranks meet there; those who cannot listen end, the others wait")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return check.fail(f"MASTER_PORT={port!r}", "unset MASTER_PORT, or export a number from 1 to 65535")
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
                listener.bind((address, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fix = f"launch with --master_port {_free_port()} (accelerate: --main_process_port), or end the run that holds it"
                return check.fail(f"{port} is in use", fix)
            if error.errno == errno.EACCES:
                return check.fail(f"{port} is not ours to use", "unset MASTER_PORT, or export one above 1023")
    return check.ok(f"{port} is free")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def check_launcher_files(hostfile: Path = Path("/job/hostfile")) -> Iterator[Finding]:
    """Files that the `deepspeed` launcher reads without being asked."""
    check = Check("launcher files", "`deepspeed` reads them without being asked, and says little of it")
    strays = 0
    if hostfile.exists():
        strays += 1
        found = f"{hostfile} exists: `deepspeed` without --hostfile runs on the hosts it lists"
        yield check.warn(found, f"rm {hostfile} if it is not yours, or launch with --hostfile FILE")
    name = launcher_variables.file_name()
    for file in {Path.home() / name, Path.cwd() / name}:
        if file.is_file():
            strays += 1
            names = set(launcher_variables.read(file)) - {launcher_variables.NOTE}
            found = f"{file} sets {', '.join(sorted(names)) or 'nothing'} on the other hosts of every run"
            if names <= launcher_variables.ours(file):
                yield check.ok(f"{found}, as `toolkit doctor --write-env` wrote it")
            else:
                yield check.warn(found, f"rm {shlex.quote(str(file))} if it is not meant for these runs")
    if not strays:
        yield check.ok(f"no {hostfile}, no {name}")


def check_environment() -> Iterator[Finding]:
    """Variables that change a run."""
    check = Check("environment", "a variable of the shell outlives the reason for which it was set")
    left = [name for name in _LEFT_BY_LAUNCHERS if name in os.environ]
    if left and os.environ.get("WORLD_SIZE", "1") != "1":
        found = f"{', '.join(left)} set in this shell: plain `python recipe.py` would wait for other ranks"
        yield check.warn(found, f"unset {' '.join(left)}")
    for name, effect in _VARIABLES.items():
        if name in os.environ:
            yield check.ok(f"{name}={os.environ[name]}: {effect}")
    if "OMP_NUM_THREADS" not in os.environ and len(os.sched_getaffinity(0)) > 1:
        yield check.ok("OMP_NUM_THREADS is not set: torch takes every core in each rank")
