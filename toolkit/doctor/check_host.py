"""Checks of the host: memory, disk, devices, the port, and files or variables that change a launch without a word."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor import launcher_variables
from toolkit.doctor.finding import Finding
from toolkit.engine import kernels

GIB = 2**30

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
    memory = _meminfo()
    total, available = memory["MemTotal"], memory["MemAvailable"]
    limit, used = _cgroup_bytes("memory.max", "limit_in_bytes"), _cgroup_bytes("memory.current", "usage_in_bytes")
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if available < 4 * GIB:
        return Finding("host memory", "warn", found, "end other programs before a run")
    return Finding("host memory", "ok", found)


def check_swap() -> Finding:
    """Swap in use: a run that swaps is slower by orders of magnitude, and nothing says so."""
    memory = _meminfo()
    used = memory["SwapTotal"] - memory["SwapFree"]
    found = f"{used / GIB:.1f} of {memory['SwapTotal'] / GIB:.1f} GiB used"
    if used > GIB:
        return Finding("swap", "warn", found, "end what does not fit into memory before a run")
    return Finding("swap", "ok", found)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Room for the buffers that the ranks and the loader workers of one host share."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("shared memory", "fail", f"{folder}: {error.strerror}", f"mount a tmpfs on {folder}")
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {folder}"
    if usage.free < GIB:
        return Finding("shared memory", "warn", found, "in a container: start it with --shm-size=8g (or --ipc=host)")
    return Finding("shared memory", "ok", found)


def check_memlock(has_gpu: bool | None = None) -> Finding:
    """Memory that may be pinned; offload to the host pins its buffers when there is a GPU."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit / GIB:.2f} GiB"
    gpu = Path("/dev/nvidia0").exists() if has_gpu is None else has_gpu
    if gpu and limit != resource.RLIM_INFINITY and limit < GIB:
        fix = "`ulimit -l unlimited` (in a container: --ulimit memlock=-1)"
        return Finding("pinned memory", "warn", f"{found}, and offload pins what it moves", fix)
    return Finding("pinned memory", "ok", found)


def check_disk(check: str, folder: Path) -> Finding:
    """Room on the disk of `folder`, which need not exist yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if not os.access(there, os.W_OK):
        return Finding(check, "fail", f"{there} cannot be written", "change its owner, or set TOOLKIT_CACHE")
    if free < 5 * GIB:
        fix = "free some space: a checkpoint with the states of Adam takes 12 bytes per parameter"
        return Finding(check, "fail" if free < GIB // 2 else "warn", found, fix)
    return Finding(check, "ok", found)


def check_devices() -> Iterator[Finding]:
    """CPU cores, 16-bit types and CUDA devices as torch sees them."""
    try:
        import torch
    except Exception as error:  # a damaged installation raises anything
        yield Finding("devices", "fail", f"torch cannot be imported: {error}", "run `make install`")
        return
    cores = len(os.sched_getaffinity(0))
    # A private name of torch, and the one DeepSpeed asks before it takes fp16 on a CPU; without it the answer is no.
    asked = {
        name: getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False) for name in ("bf16", "fp16")
    }
    fast = ["fp32", *(name for name, supported in asked.items() if supported())]
    yield Finding("CPU", "ok", f"{cores} cores; matrix products in {', '.join(fast)}")
    built_for = torch.version.cuda
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("CUDA devices", "ok", f"{len(names)}: {', '.join(names)}; torch is built for CUDA {built_for}")
        yield check_nvcc(built_for)
    elif shutil.which("nvidia-smi") and Path("/dev/nvidia0").exists():
        found = "there is a GPU, but torch is a CPU build" if built_for is None else "torch cannot use the GPU"
        yield Finding("CUDA devices", "warn", found, "pip install a torch built for your driver (see `nvidia-smi`)")
    else:
        yield Finding("CUDA devices", "ok", "none; runs use the CPU")


def check_nvcc(built_for: str | None) -> Finding:
    """Whether DeepSpeed's GPU kernels (FusedAdam, FusedLion) can be built. The default optimizer needs none."""
    fault = kernels.nvcc_fault(built_for)
    if fault:
        fix = "only for optimizer.implementation='deepspeed' and lion: install the CUDA toolkit of torch's version"
        return Finding("nvcc", "warn", f"{fault}: DeepSpeed's GPU kernels cannot be built", fix)
    return Finding("nvcc", "ok", f"fits torch's CUDA {built_for}")


def check_port(port: str) -> Finding:
    """Whether rank 0 could listen on `port`, on either kind of address."""
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return Finding("port", "fail", f"MASTER_PORT={port!r}", "set it to a number from 1 to 65535, or unset it")
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
                listener.bind((address, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fix = (
                    "end the run that holds it, or launch with another: --master_port (accelerate: --main_process_port)"
                )
                return Finding("port", "fail", f"{port} is in use", fix)
            if error.errno == errno.EACCES:
                return Finding("port", "fail", f"{port} is not ours to use", "set MASTER_PORT above 1023, or unset it")
    return Finding("port", "ok", f"{port} is free")


def check_launcher_files(hostfile: Path = Path("/job/hostfile")) -> Iterator[Finding]:
    """Files that the `deepspeed` launcher reads without being asked."""
    strays = 0
    if hostfile.exists():
        strays += 1
        found = f"{hostfile} exists: `deepspeed` without --hostfile runs on the hosts it lists"
        yield Finding("launcher files", "warn", found, "give --hostfile, or remove it if it is not yours")
    name = launcher_variables.file_name()
    for file in {Path.home() / name, Path.cwd() / name}:
        if file.is_file():
            strays += 1
            names = set(launcher_variables.read(file)) - {launcher_variables.NOTE}
            found = f"{file} sets {', '.join(sorted(names)) or 'nothing'} on the other hosts of every run"
            if names <= launcher_variables.ours(file):
                yield Finding("launcher files", "ok", f"{found}, as `toolkit doctor --write-env` wrote it")
            else:
                yield Finding("launcher files", "warn", found, "remove it if it is not meant for these runs")
    if not strays:
        yield Finding("launcher files", "ok", f"no {hostfile}, no {name}")


def check_environment() -> Iterator[Finding]:
    """Variables that change a run."""
    left = [name for name in _LEFT_BY_LAUNCHERS if name in os.environ]
    if left and os.environ.get("WORLD_SIZE", "1") != "1":
        found = f"{', '.join(left)} set in this shell: plain `python recipe.py` would wait for other ranks"
        yield Finding("environment", "warn", found, f"unset {' '.join(left)}")
    for name, effect in _VARIABLES.items():
        if name in os.environ:
            yield Finding("environment", "ok", f"{name}={os.environ[name]}: {effect}")
    if "OMP_NUM_THREADS" not in os.environ and len(os.sched_getaffinity(0)) > 1:
        yield Finding("environment", "ok", "OMP_NUM_THREADS is not set: torch takes every core in each rank")


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _cgroup_bytes(current_name: str, old_name: str) -> int | None:
    """A number of the container (cgroup 2, then 1) in bytes, or None if there is none."""
    for file in (f"/sys/fs/cgroup/{current_name}", f"/sys/fs/cgroup/memory/memory.{old_name}"):
        try:
            return int(Path(file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
