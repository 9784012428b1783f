"""Starting and ending the process group, and the few collectives the loop needs."""

from __future__ import annotations

import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils.logging import set_log_level_from_string
from torch.distributed import distributed_c10d

from toolkit.engine import build_lock, device, grid, kernels
from toolkit.errors import LaunchError, ToolkitError
from toolkit.library_messages import are_shown
from toolkit.recipe import Parallel
from toolkit.recipe.mesh import Mesh, mesh_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class Process:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    mesh: Mesh
    """How the ranks are arranged."""

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that prints and writes."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of every global batch this rank computes; ranks of one replica share it."""
        return self.mesh.coordinate(self.rank, "data")

    @property
    def spans_hosts(self) -> bool:
        """Whether some ranks run on other hosts."""
        return self.world_size > self.local_world_size


def from_environment(parallel: Parallel | None = None) -> Process:
    """What the launcher says, arranged as `parallel` asks. Started as plain `python`, this is one rank of one."""
    world = _integer("WORLD_SIZE", 1)
    # The deepspeed launcher says LOCAL_SIZE where torchrun says LOCAL_WORLD_SIZE.
    local_world = _integer("LOCAL_WORLD_SIZE", _integer("LOCAL_SIZE", world))
    mesh = mesh_of(parallel or Parallel(), world)
    return Process(_integer("RANK", 0), world, _integer("LOCAL_RANK", 0), local_world, mesh)


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdigit():
        raise LaunchError(
            f"{name}={text!r} in the environment", expected="a number", do=f"unset {name}, or start with a launcher"
        )
    return int(text)


def start(
    process: Process, *, timeout_s: float = 1800.0, init_method: str | None = None, host_optimizer: bool = False
) -> None:
    """Bind the device and join the process group, whose collectives give up after `timeout_s` seconds.

    `host_optimizer` says that the optimizer computes on the host's cores, whatever the device. `init_method` is where the ranks meet, such as "file:///a/file"; None: at the port the launcher names. Raises
    LaunchError when that is taken. On several hosts, `toolkit.engine.hosts` comes first: there the port is checked,
    and then held by rank 0.
    """
    probe_no_kernels()
    _set_voices()
    kernels.own_ninja_first()
    # On several hosts the folder may be shared, and the build that holds the lock run on another one.
    if not process.spans_hosts:
        build_lock.use()
    device.prepare(process.local_rank, process.local_world_size, host_optimizer=host_optimizer)
    if dist.is_initialized():
        return
    if init_method is None and not process.spans_hosts:
        check_rendezvous(process)
    _set_default_timeout(timedelta(seconds=timeout_s))
    backend = "gloo" if device.kind() == "cpu" else "nccl"
    _record_collectives()
    deepspeed.init_distributed(
        dist_backend=backend,
        init_method=init_method,
        rank=process.rank,
        world_size=process.world_size,
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
    )
    if backend == "nccl":
        global _hosts_group
        _hosts_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


_hosts_group: dist.ProcessGroup | None = None
"""The group in which processes tell each other what no device need know; None: the group of all, which is gloo's own.

In a collective of NCCL a waiting rank keeps its device busy, and its watchdog ends the process where another rank writes
files for longer than the time-out.
"""


def probe_no_kernels() -> None:
    # Whoever asks DeepSpeed what may be compiled here makes it try all of it: it calls compiler and linker in each rank,
    # and their errors reach the screen. On a CPU it asks itself, at every start, for a shared-memory kernel that only
    # inference uses. A table that is there already is not made; a kernel that a run does need is built without it.
    deepspeed.ops.__compatible_ops__ = {}


def _record_collectives() -> None:
    # When a collective of NCCL times out, its watchdog ends the process: what each rank was in is then in files that
    # begin so. Its error message names them.
    files = Path(tempfile.gettempdir()) / f"toolkit-collectives-{os.getuid()}-rank"
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(files))


def _set_voices() -> None:
    if are_shown():
        set_log_level_from_string("info")
    else:
        # Every rank would print torch's advice on the names that DeepSpeed calls.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _set_default_timeout(timeout: timedelta) -> None:
    # DeepSpeed makes its own groups and takes torch's default for them, whatever it was told for the first one.
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        if getattr(distributed_c10d, name, None) is not None:
            setattr(distributed_c10d, name, timeout)


def check_rendezvous(process: Process) -> None:
    """Raise LaunchError when the launcher does not say where to meet, or the port is taken. A lone rank needs none."""
    missing = [name for name in ("RANK", "MASTER_PORT") if name not in os.environ]
    if process.world_size == 1 and missing:
        # DeepSpeed asks the environment, not its arguments. A MASTER_PORT without a rank belongs to an outer shell.
        # The system chooses a port when 0 is opened: no other process can take it in between.
        _outer_environment.update({name: os.environ.get(name) for name in _LONE_RANK})
        os.environ.update(_LONE_RANK)
        return
    if missing:
        raise LaunchError(
            f"WORLD_SIZE={process.world_size} without {' and '.join(missing)}",
            expected="the environment of a launcher",
            do="start with `deepspeed`, `accelerate launch` or `torchrun`, or unset WORLD_SIZE",
        )
    # torchrun's agent already holds the port, rightly.
    if process.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        _check_port_is_free(os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"]))


_LONE_RANK = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
_outer_environment: dict[str, str | None] = {}
"""What `check_rendezvous` has overwritten of the environment for a lone rank, until `stop`."""


def _check_port_is_free(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LaunchError(
                f"port {port} on {address} is in use ({error.strerror})",
                expected="a free port for the processes to meet at",
                do="pass another one: `deepspeed --master_port 29511 ...`, `torchrun --master_port 29511 ...`, `accelerate launch --main_process_port 29511 ...`",
            ) from None


def stop() -> None:
    """Leave the process group."""
    global _hosts_group
    if dist.is_initialized():
        dist.destroy_process_group()
    _hosts_group = None
    grid.forget()
    # Or a process started from this one, or its own next run, would take itself for a rank that a launcher started.
    for name, value in _outer_environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _outer_environment.clear()


def num_ranks(group: dist.ProcessGroup | None = None) -> int:
    """Of `group`, else of all; 1 before they have met."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank."""
    if num_ranks() > 1:
        dist.barrier(group=_hosts_group)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise float64 sum of `values` over all ranks. Waits for no device."""
    total = torch.tensor(list(values), dtype=torch.float64)
    if num_ranks() > 1:
        dist.all_reduce(total, group=_hosts_group)
    return [float(value) for value in total.tolist()]


def any_rank(flag: bool) -> bool:
    """Whether `flag` holds on at least one rank."""
    return sum_over_ranks([float(flag)])[0] > 0


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    if num_ranks() == 1:
        return [value]
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, value, group=_hosts_group)
    return everything


def gather_on_main(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on rank 0; nothing on the others."""
    if num_ranks() == 1:
        return [value]
    everything: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, everything, dst=0, group=_hosts_group)
    return everything or []


class GlooExchange:
    """`gather_objects` over a group of its own, for a thread beside the one that trains. Making it is collective."""

    def __init__(self) -> None:
        self.rank, self.size, self._group = 0, 1, None
        if num_ranks() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo")

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order."""
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, value, group=self._group)
        return everything


def agree(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank; if it raises a ToolkitError on one, raise that error on all of them."""
    problem: ToolkitError | None = None
    result: Any = None
    try:
        result = action()
    except ToolkitError as error:
        problem = error
    # A rank that went on alone would wait for the others in the next collective, for ever.
    first = next((error for error in gather_objects(problem) if error is not None), None)
    if first is not None:
        raise first
    return result  # type: ignore[no-any-return]


PATIENCE_S = 1.0
"""So long ranks wait at a time for what `from_main_at_length` does."""


def from_main_at_length(action: Callable[[], Result]) -> Result:
    """`from_main` for what may take longer than a collective waits. `action` runs in a thread, beside short collectives.

    It must not use the device or the process group.
    """
    if num_ranks() == 1:
        return action()
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(action) if dist.get_rank() == 0 else None
        while not from_main(lambda: _has_ended(work)):
            pass
        return from_main(lambda: work.result() if work is not None else action())


def _has_ended(work: Future[Any] | None) -> bool:
    """Whether `work` ends within PATIENCE_S, well or not."""
    return work is None or bool(wait([work], timeout=PATIENCE_S).done)


def from_main(action: Callable[[], Result]) -> Result:
    """What `action` returns on rank 0, on every rank; the others do not run it. Raises on all what it raises there.

    For what ranks must not find out one by one: each may see another state of a file system.
    """
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    found: Result = gather_objects(agree(lambda: action() if is_main else None))[0]
    return found
