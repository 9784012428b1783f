"""Stages of a long measurement, each under a time limit, outside of the process that runs them.

A stage measures rows, one after the other, and says of each when it begins and what came of it. Whatever happens to
its process (an error, a crash, no memory, a hang), the rows before are kept, the row in progress is recorded with the
end of what it printed, and another process goes on with the rows after it. Time that a stage leaves is for the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

REPLACED = 75
"""Exit code of a stage's process that wants another one to go on: what it has allocated cannot be freed."""

LEFTOVER = 1 / 50
"""Share of the device's memory that a row may leave behind; more, and the next one gets a new process."""

LEAST_ROW_S = 15.0
"""Seconds of a row that are not cut for the rows after it."""

TAIL_LINES = 15

Record = dict[str, Any]
"""JSON-able: stage, row, status, seconds, and what was measured or why not."""

Keep = Callable[[Record], None]

GREEN = ("done", "out of memory", "left out", "no time")
"""What may become of a row without a fault of the code: "left out" is a row that this machine cannot measure."""


@dataclass(frozen=True)
class Row:
    """One measurement of a stage."""

    name: str
    measure: Callable[[float], Record]
    """Called with the seconds it may take; returns what it measured, or raises."""
    without: str = ""
    """What this machine lacks for it; empty where it can be measured."""
    kills_itself: bool = False
    """Whether its process is meant to end with SIGKILL."""


@dataclass(frozen=True)
class Stage:
    """A stage as its runner knows it."""

    name: str
    share: float
    """Of the time, in relation to the others'."""


class Child(Protocol):
    """A stage's process."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def kill(self) -> None:
        """End it and what it has started, and wait for that."""


@dataclass(frozen=True)
class Call:
    """What a stage's process is told."""

    stage: str
    folder: Path
    """Where it may write, and where its processes find what those before have written."""
    told: Path
    """File to which it appends what it has to say, a JSON object per line."""
    log: Path
    """File for everything it prints."""
    skip: tuple[str, ...]
    """Rows that are dealt with."""
    limit_s: float
    """Seconds left for the stage."""


Begin = Callable[[Call], Child]


# --- in a stage's process ---------------------------------------------------------------------------------------------


def serve(rows: Sequence[Row], call: Call) -> None:
    """Measure the rows that are left. Ends the process with REPLACED when its memory does not come back."""
    deadline = time.monotonic() + call.limit_s
    with call.told.open("a", encoding="utf-8", buffering=1) as file:

        def tell(**said: Any) -> None:
            file.write(json.dumps(said) + "\n")

        tell(rows=[row.name for row in rows])
        left = [row for row in rows if row.name not in call.skip]
        for index, row in enumerate(left):
            limit = row_limit(deadline - time.monotonic(), sum(not other.without for other in left[index:]))
            sys.stdout.flush()
            tell(begin=row.name, limit_s=limit, kills_itself=row.kills_itself, log_from=call.log.stat().st_size)
            began = time.monotonic()
            found = {"status": "left out", "why": row.without} if row.without else _measure(row, limit)
            tell(end=row.name, found={"seconds": round(time.monotonic() - began, 2), **found})
            if _leftover() > LEFTOVER:
                sys.exit(REPLACED)


def row_limit(left_s: float, rows: int) -> float:
    """Seconds for the next of `rows`: twice its part of what is left, from a third of it to two; for the last one all.

    And at least LEAST_ROW_S, where they are left: a process that takes its place costs as much.
    """
    left_s = max(0.0, left_s)
    share = 1.0 if rows <= 1 else min(2 / 3, max(1 / 3, 2 / rows))
    return max(left_s * share, min(left_s, LEAST_ROW_S))


def _measure(row: Row, limit_s: float) -> Record:
    try:
        return {"status": "done", **row.measure(limit_s)}
    except Exception as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
        if "torch" not in sys.modules:
            return {"status": "failed", "why": why}
        from harness.memory import forget
        from toolkit.engine.out_of_memory import is_out_of_memory

        status = "out of memory" if is_out_of_memory(error) else "failed"
        forget(error)
        return {"status": status, "why": why}


def _leftover() -> float:
    """Share of the device's memory that is still allocated."""
    if "torch" not in sys.modules:
        return 0.0
    from harness.memory import allocated_share, release

    release()
    return allocated_share()


# --- in the process that starts them ----------------------------------------------------------------------------------


def begin(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> _Process:
    """Start `command` as a stage's process, in a group of its own, its output appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Process(process)


class Worker:
    """A process that does one call after another, because the libraries of a stage take half a minute to import."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._process: _Process | None = None

    def begin(self, call: Call) -> Child:
        """Let the process do `call`; a new one where there is none, or the last one has ended."""
        _over(call).unlink(missing_ok=True)
        if self._process is None or self._process.poll() is not None:
            self._process = begin(self._command, call.log, self._environment)
        pipe = self._process.process.stdin
        assert pipe is not None
        told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(call).items()}
        with contextlib.suppress(BrokenPipeError):  # it has just ended: poll says so
            pipe.write(json.dumps(told).encode() + b"\n")
            pipe.flush()
        return _Called(self._process, _over(call))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()


def calls() -> Iterator[Call]:
    """In a worker's process: the calls, as they come. What is printed goes to the log of each."""
    for line in sys.stdin:
        told = json.loads(line)
        call = Call(
            **told | {name: Path(told[name]) for name in ("folder", "told", "log")} | {"skip": tuple(told["skip"])}
        )
        sys.stdout.flush()
        log = os.open(call.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        yield call
        _over(call).touch()


def _over(call: Call) -> Path:
    """A file that is there as soon as `call` is done."""
    return call.told.with_suffix(".over")


@dataclass
class _Called:
    """A worker's process while it does one call."""

    process: _Process
    over: Path

    def poll(self) -> int | None:
        return 0 if self.over.exists() else self.process.poll()

    def kill(self) -> None:
        if not self.over.exists():
            self.process.kill()


@dataclass
class _Process:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_stages(
    stages: Sequence[Stage],
    budget_s: float,
    begin: Begin,
    folder: Path,
    logs: Path,
    keep: Keep,
    known: Callable[[str], Sequence[str]] = lambda _: (),
) -> None:
    """Run `stages` in `budget_s` seconds; `keep` gets the record of each row as soon as it is known.

    `logs` is a folder for what the stages print, a file per stage; `folder` is theirs while they run. `known`: rows of a
    stage that are left alone.
    """
    end = time.monotonic() + budget_s
    for index, stage in enumerate(stages):
        share = stage.share / sum(other.share for other in stages[index:])
        limit_s = (end - time.monotonic()) * share
        _run_stage(stage.name, limit_s, begin, folder, logs, keep, list(known(stage.name)))


def _run_stage(name: str, limit_s: float, begin: Begin, folder: Path, logs: Path, keep: Keep, known: list[str]) -> None:
    deadline = time.monotonic() + limit_s
    place, told, log = folder / name, folder / f"{name}.told", logs / f"{name}.log"
    place.mkdir(parents=True, exist_ok=True)
    for file in (told, log):
        file.write_bytes(b"")
    followed = _Followed(name, deadline, told, log, keep, dealt_with=known)
    while not followed.is_over:
        before = len(followed.dealt_with)
        call = Call(name, place, told, log, tuple(followed.dealt_with), deadline - time.monotonic())
        child = begin(call)
        try:
            code = followed.until_end(child)
        finally:
            child.kill()
        followed.settle(code)
        if len(followed.dealt_with) == before and code != REPLACED:
            followed.keep_row("start", {"status": "failed", "why": _ending(code)})
            return


@dataclass
class _Followed:
    """What is known of a stage from what its processes tell."""

    stage: str
    deadline: float
    told: Path
    log: Path
    keep: Keep
    rows: list[str] | None = None
    """None until a process has told them."""
    dealt_with: list[str] = field(default_factory=list)
    current: str | None = None
    _kills_itself: bool = False
    _row_began: float = 0.0
    _row_ends: float = 0.0
    _log_from: int = 0
    _read_to: int = 0

    @property
    def is_over(self) -> bool:
        return self.rows is not None and all(row in self.dealt_with for row in self.rows)

    def until_end(self, child: Child) -> int | None:
        """Listen until `child` has ended; its exit code, None where its time was up."""
        self._row_ends, self._log_from = self.deadline, self.log.stat().st_size
        while True:
            code = child.poll()
            self._listen()
            if code is not None or time.monotonic() > min(self._row_ends, self.deadline):
                return code
            time.sleep(0.02)

    def settle(self, code: int | None) -> None:
        """Record what the end of a process means for the row in progress, and for the others at the end of the time."""
        if self.current is not None:
            seconds = round(time.monotonic() - self._row_began, 2)
            if self._kills_itself and code == -signal.SIGKILL:
                found = {"status": "done"}
            elif code is None:
                found = {"status": "timed out", "why": f"not done after {seconds:.0f} s"}
            else:
                found = {"status": "failed", "why": _ending(code)}
            self.keep_row(self.current, {"seconds": seconds, **found})
        if time.monotonic() > self.deadline:
            for row in [row for row in self.rows or [] if row not in self.dealt_with]:
                self.keep_row(row, {"status": "no time"})

    def keep_row(self, row: str, found: Record) -> None:
        """Hand on a row's record, with the end of its log where something went wrong."""
        record = {"stage": self.stage, "row": row, **found}
        if record["status"] not in GREEN:
            record["log"] = self._tail()
        self.dealt_with.append(row)
        self.current = None
        self.keep(record)

    def _listen(self) -> None:
        with self.told.open("rb") as file:
            file.seek(self._read_to)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, said: Record) -> None:
        now = time.monotonic()
        if "rows" in said:
            self.rows = said["rows"]
        elif "begin" in said:
            self.current, self._kills_itself = said["begin"], said["kills_itself"]
            self._row_began, self._row_ends = now, now + said["limit_s"]
            self._log_from = said["log_from"]
        else:
            self._row_ends = self.deadline
            self.keep_row(said["end"], said["found"])

    def _tail(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._log_from)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-TAIL_LINES:])


def _ending(code: int | None) -> str:
    if code is None:
        return "the process was not done in time"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"
