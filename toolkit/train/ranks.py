"""Run a function on several CPU ranks, forked from one server that has imported the heavy packages already.

A rank costs a fork instead of ten seconds of imports. A rank that raises, dies or hangs ends the call, and all ranks.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver, util
from pathlib import Path
from typing import Any, cast

from toolkit.errors import ToolkitError

PRELOADED = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    # Whatever the architecture, it imports what these do.
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "datasets",
    "deepspeed",
    # What deepspeed.initialize and torch.optim import late.
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "torch._dynamo",
    "torch._dynamo.backends.debugging",
    "torch._inductor.compile_fx",
    "toolkit.train.run",
    "accelerate.tracking",
    "toolkit.train.warm",
)

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Muon compiles its Newton-Schulz iteration at first use, which takes a minute and changes no number.
    "TORCHDYNAMO_DISABLE": "1",
    # Ranks end without unwinding, which Python's resource tracker would remark on at the end.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
}


class RankFailed(Exception):
    """A rank raised, died or hung; the message holds its traceback and what it printed."""

    def __init__(self, message: str, headline: str, error: ToolkitError | None = None) -> None:
        super().__init__(message)
        self.headline = headline
        """One line: what happened."""
        self.error = error
        """What a rank raised on purpose, if it was that."""


def run(
    function: Callable[..., Any] | str,
    world_size: int,
    *args: Any,
    timeout_s: float,
    preload: Sequence[str] = PRELOADED,
) -> list[Any]:
    """Results of `function(rank, world_size, *args)` on each rank, in rank order.

    `function` is a picklable function of a module, or "module:name". The default process group (gloo) and the variables a launcher sets
    are there before the call. The server starts with the first call of a process, and imports the modules `preload`.
    Raises RankFailed, after killing every rank, as soon as one raises or dies, or when they are not done after
    `timeout_s` seconds.
    """
    context = _server(preload)
    work = pickle.dumps((function, args))
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        ranks = [_start(context, rank, world_size, work, Path(folder), port, timeout_s) for rank in range(world_size)]
        try:
            return _collect(ranks, time.monotonic() + timeout_s, timeout_s)
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.join()
                rank.results.close()


@dataclass
class _Rank:
    """A running rank as the calling process sees it."""

    number: int
    process: Any
    results: connection.Connection
    log: Path

    def printed(self) -> str:
        return self.log.read_text(errors="replace").strip() if self.log.exists() else ""


@dataclass(frozen=True)
class _Failure:
    """What a rank says that has not succeeded."""

    text: str
    headline: str
    error: ToolkitError | None = None


_server_log = tempfile.TemporaryFile()  # noqa: SIM115
"""What the server says while it imports, and a rank before it has a log of its own."""


LONGEST_FOLDER = 70
"""Characters of a temporary folder in which a socket's name stays below the 107 that Unix allows."""


def _keep_sockets_short() -> None:
    """Let multiprocessing put its sockets into /tmp where TMPDIR is long, as those that schedulers give to a job are."""
    if len(tempfile.gettempdir()) <= LONGEST_FOLDER:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        util.get_temp_dir()  # made once, and remembered
    finally:
        tempfile.tempdir = before


def _server(preload: Sequence[str]) -> Any:
    """The forkserver context, its server running. Only the server, not this process, gets ENVIRONMENT."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with _environment(ENVIRONMENT), _errors_to(_server_log.fileno()):
        _keep_sockets_short()
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _errors_to(file: int) -> Iterator[None]:
    """What is started inside writes its standard error to `file`: what packages remark on while they are imported helps nobody."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _said_by_server() -> str:
    # Without moving the place at which its processes write.
    return os.pread(_server_log.fileno(), 1 << 16, 0).decode(errors="replace").strip()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(context: Any, rank: int, world_size: int, work: bytes, folder: Path, port: int, timeout_s: float) -> _Rank:
    receiving, sending = context.Pipe(duplex=False)
    log = folder / f"rank{rank}.log"
    process = context.Process(
        target=_rank_main, args=(rank, world_size, work, str(folder), str(log), port, timeout_s, sending)
    )
    process.start()
    # With the rank's own copy as the only one left, its death ends the pipe.
    sending.close()
    return _Rank(rank, process, receiving, log)


def _collect(ranks: list[_Rank], deadline: float, timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[_Failure] = []
    waiting = list(ranks)
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        ready = connection.wait([rank.results for rank in waiting], timeout=left)
        if not ready:
            raise _failed(failures or [_describe_hang(waiting, timeout_s)])
        for rank in [rank for rank in waiting if rank.results in ready]:
            waiting.remove(rank)
            value = _receive(rank)
            if not isinstance(value, _Failure):
                results[rank.number] = value
                continue
            failures.append(value)
            # A rank that dies makes the others fail, and their reports may come first: wait a moment for the cause.
            deadline = min(deadline, time.monotonic() + 1.0)
    if failures:
        raise _failed(failures)
    return [results[rank.number] for rank in ranks]


def _failed(failures: list[_Failure]) -> RankFailed:
    # What was raised on purpose explains more than the broken connections that follow from it.
    first = next((failure for failure in failures if failure.error is not None), failures[0])
    return RankFailed("\n".join(failure.text for failure in failures), first.headline, first.error)


def _receive(rank: _Rank) -> Any:
    """The result of a rank that has spoken or died, or its _Failure."""
    try:
        value = pickle.loads(rank.results.recv_bytes())
    except EOFError:
        rank.process.join(5)
        headline = f"rank {rank.number} died with exit code {rank.process.exitcode}"
        # It may not have come so far as to write to its log.
        more = "" if rank.printed() else f"\n{_said_by_server()}"
        value = _Failure(f"{headline}{more}", headline)
    if isinstance(value, _Failure):
        return _Failure(f"{value.text}\nrank {rank.number} printed\n{rank.printed()}", value.headline, value.error)
    return value


def _describe_hang(waiting: list[_Rank], timeout_s: float) -> _Failure:
    for rank in waiting:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.process.pid, signal.SIGUSR1)
    time.sleep(0.5)  # for faulthandler to write the stacks
    stacks = "\n".join(f"rank {rank.number} printed\n{rank.printed()}" for rank in waiting)
    headline = f"not done after {timeout_s:g} s: rank {', '.join(str(rank.number) for rank in waiting)}"
    return _Failure(f"{headline}\n{stacks}", headline)


def _rank_main(
    rank: int, world_size: int, work: bytes, folder: str, log: str, port: int, timeout_s: float, pipe: Any
) -> None:
    """What a rank's process runs: set up, call, send the result or a _Failure."""
    _prepare_process(log, timeout_s)
    os.environ.update(ENVIRONMENT)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"})
    os.environ.update({"MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)})
    os.environ.update({"LOCAL_WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(world_size)})
    try:
        function, args = pickle.loads(work)
        _join_group(rank, world_size, folder, timeout_s)
        result = pickle.dumps(_resolve(function)(rank, world_size, *args))
        _leave_group()
    except BaseException as error:
        pipe.send_bytes(pickle.dumps(_failure(rank, error)))
        # Tearing down a process group whose other ranks are stuck may hang.
        os._exit(1)
    pipe.send_bytes(result)
    sys.stdout.flush()


def _resolve(function: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _failure(rank: int, error: BaseException) -> _Failure:
    lines = str(error).strip().splitlines()
    headline = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    meant = error if isinstance(error, ToolkitError) else None
    return _Failure(f"rank {rank} raised\n{traceback.format_exc()}", headline, meant)


def _prepare_process(log: str, timeout_s: float) -> None:
    """Send all output to `log`; dump stacks there on a crash or SIGUSR1; end by itself should the caller die."""
    import faulthandler

    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    faulthandler.dump_traceback_later(timeout_s + 30, exit=True, file=2)


def _join_group(rank: int, world_size: int, folder: str, timeout_s: float) -> None:
    import torch

    from toolkit.engine import process

    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    process.start(
        process.from_environment(),
        # Longer than the caller's own limit: a hang should be seen as stacks, not as a gloo error.
        timeout_s=timeout_s + 60,
        init_method=f"file://{folder}/rendezvous",
    )


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
