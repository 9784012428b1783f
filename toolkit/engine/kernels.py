"""The folder where DeepSpeed's CPU kernels are compiled at first use. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.errors import LaunchError, StorageError

KERNELS = {"cpu_adam": "CPUAdamBuilder", "cpu_adagrad": "CPUAdagradBuilder", "cpu_lion": "CPULionBuilder"}
"""What optimizer offload may need: name -> builder of DeepSpeed's."""
NVME_KERNELS = {"async_io": "AsyncIOBuilder", "pin_memory": "PinMemoryBuilder"}
"""What offload to NVMe needs besides, and what needs libaio to be built."""

_BUILD = (
    "from deepspeed.accelerator import get_accelerator as a; a().create_op_builder({builder!r}).load(verbose=False)"
)


def build(kernels: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Compile `kernels` now, as many at a time as there are cores, instead of one by one at first use.

    What is built already is left alone. Raises LaunchError with the compiler's last words.
    """
    own_ninja_first()
    remove_stale_locks()

    def build_one(name: str) -> None:
        command = [sys.executable, "-c", _BUILD.format(builder=kernels[name])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-3:]
            raise LaunchError(
                f"DeepSpeed's kernel {name} does not build: {' | '.join(last)}",
                expected="a C++ compiler and ninja that torch's extensions build with",
                do="see `toolkit doctor`; runs with optimizer.implementation='torch' need no kernel",
            )
        say(f"{name} is built")

    with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(build_one, kernels))


def extensions_root() -> Path:
    """Where torch keeps what it compiles."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(cache) / "torch_extensions"


def locks(root: Path) -> list[Path]:
    """Lock files of builds under `root`, running or killed."""
    return sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})


def holder(file: Path, processes: Path = Path("/proc")) -> int | None:
    """The process that has `file` open; None if none of those we may look at has."""
    wanted = file.stat()
    for descriptor in processes.glob("[0-9]*/fd/*"):
        try:
            status = descriptor.stat()
        except OSError:  # ended meanwhile, or another user's
            continue
        if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
            return int(descriptor.parts[-3])
    return None


def remove_stale_locks() -> list[Path]:
    """Remove the locks that killed builds left on this host; returns them. Every later run would wait for them in silence.

    torch keeps the file open for as long as it builds, so a lock that no process has open is stale.
    """
    if not Path("/proc").is_dir():
        return []
    removed = []
    for lock in locks(extensions_root()):
        try:
            if holder(lock) is None:
                lock.unlink()
                removed.append(lock)
        except FileNotFoundError:  # its build has just ended
            continue
        except OSError as error:
            raise StorageError(
                f"{lock} was left by a killed build and cannot be removed: {error.strerror}",
                expected="a cache of compiled kernels that this user may write to",
                do=f"rm {lock}, or set TORCH_EXTENSIONS_DIR to another folder",
            ) from None
    return removed


def own_ninja_first() -> None:
    """Put this Python's ninja first on PATH.

    Every kernel is built anew, a minute each, whenever another version of ninja comes first than did the last time.
    """
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    if beside is not None and shutil.which("ninja") != beside:
        os.environ["PATH"] = os.pathsep.join([str(Path(beside).parent), os.environ.get("PATH", os.defpath)])
