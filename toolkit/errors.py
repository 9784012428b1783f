"""Every error raised on purpose.

    ToolkitError            exit 1 unless a subclass says otherwise
    +-- InputError          exit 2: something the user gave us is wrong
    |   +-- RecipeError     a recipe field, or two that contradict each other
    |   |   +-- SeveralErrors   more than one such thing
    |   +-- ConfigError     a DeepSpeed JSON, or the recipe as one
    |   +-- DataError       a data file, a column, a row, a chat template
    |   |   +-- SourceAbsent    a data source that is not on this host
    |   +-- ModelError      a checkpoint directory, a tokenizer, an architecture
    |   +-- LaunchError     the launcher, the device, ports, the run folder
    |   +-- CheckpointError a checkpoint that cannot be read or written
    +-- RunFailed           exit 3: the run diverged, or a check did not hold
    +-- StorageError        exit 1: a disk that filled up or went away during the run
    +-- HostLost            exit 1: another host, or a process on it, went away during the run
    +-- RankLost            exit 1: another process on this host did

Each message answers three questions, in this order: what is wrong (key and value), what was expected, what to do.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType


class ToolkitError(Exception):
    """Base of all errors raised on purpose; catch it to catch them all.

    `what` names the key and its value, `expected` the values that work, `do` the command or edit that cures it.
    """

    exit_code = 1

    def __init__(self, what: str, *, expected: str, do: str) -> None:
        self.what, self.expected, self.do = what, expected, do
        super().__init__(what, expected, do)

    def __str__(self) -> str:
        return f"{self.what}\n  expected: {self.expected}\n  do this:  {self.do}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.expected, self.do)


def _rebuild(kind: type[ToolkitError], what: str, expected: str, do: str) -> ToolkitError:
    return kind(what, expected=expected, do=do)


class InputError(ToolkitError):
    """Something the user gave us is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe field has a value it cannot have, or two fields contradict each other."""


class SeveralErrors(RecipeError):
    """Several things that the user gave us are wrong; each part has its own message."""

    def __init__(self, what: str, *, expected: str, do: str, parts: Sequence[InputError] = ()) -> None:
        super().__init__(what, expected=expected, do=do)
        self.parts = tuple(parts)

    def __str__(self) -> str:
        return "\nerror: ".join(map(str, self.parts)) or super().__str__()

    def __reduce__(self) -> tuple[object, ...]:
        return (together, (self.parts,)) if self.parts else super().__reduce__()


def together(errors: Sequence[InputError]) -> InputError:
    """One error for all of `errors`, of which there is at least one."""
    return errors[0] if len(errors) == 1 else SeveralErrors(**joined(errors), parts=errors)


def joined(errors: Sequence[InputError]) -> dict[str, str]:
    """The three parts of one message for all of `errors`."""
    return {part: "; ".join(getattr(error, part) for error in errors) for part in ("what", "expected", "do")}


def collect(*checks: Callable[[], object]) -> list[InputError]:
    """What `checks` raise: all of it, so that nobody corrects one thing only to be told the next."""
    found: list[InputError] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            found += [error]
    return found


class ConfigError(InputError):
    """A DeepSpeed JSON, or the one rendered from a recipe, would be ignored, misread or silently wrong."""

    line: int | None = None
    """Of the file, where reading it stopped at one."""


class DataError(InputError):
    """A data source, a row of it or a chat template cannot be used."""


class SourceAbsent(DataError):
    """A data source is not on this host, and nothing there has nearly its name."""


class ModelError(InputError):
    """A checkpoint directory, a tokenizer or an architecture cannot be used."""


class LaunchError(InputError):
    """The launcher, the devices, a port or the run folder cannot be used."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or does not belong to this run."""


class RunFailed(ToolkitError):
    """The run diverged or a check did not hold."""

    exit_code = 3


class StorageError(ToolkitError):
    """The disk filled up or went away while the run was writing."""


class HostLost(ToolkitError):
    """Another host, or a process on it, ended or no longer answers.

    Not exit 3: the numbers are good as far as they go, and the same command continues them.
    """


class RankLost(ToolkitError):
    """Another process of the run on this host ended. Each rank says so for itself: the one that usually speaks may be gone."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`, or an empty string."""
    near = nearest(word, known)
    return f" (did you mean {near[0]!r}?)" if near else ""


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """The one of `known` that is most like `word`; nothing where none has that `likeness`, 1 for the same."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)


def not_apart(word: str) -> str:
    """What to say of `word` in a list where it is not known and has a comma; else an empty string."""
    parts = [part for part in word.split(",") if part]
    return f" (several are separated by spaces: {' '.join(parts)})" if len(parts) > 1 else ""


def plural(count: int, word: str, plural: str = "") -> str:
    """`1 rank`, `2 ranks`, `0 ranks`; for a word that takes more than an s, give its `plural`."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"


def first_few(names: Sequence[str], limit: int = 8) -> str:
    """The first `limit` of `names` with commas between them, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"


def with_type(value: object) -> str:
    """What Python shows of `value`, cut short, and its type."""
    return "None" if value is None else f"{value!r:.60}, a {type(value).__name__}"


def innermost(error: BaseException) -> BaseException:
    """What caused what caused `error`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """What `error` says, in one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


HEAD_START_S = 5.0
"""So much longer the silent ranks stay: launchers kill all processes as soon as one of them ends."""


def show(error: ToolkitError) -> int:
    """Print one message on standard error and return the exit code. Of a host's ranks, one speaks for what all of them meet."""
    # Every rank of a host meets the same bad input, or misses the same host; the reader needs it once. Other kinds may
    # differ from rank to rank.
    rank = os.environ.get("RANK", "0")
    if isinstance(error, InputError | HostLost) and os.environ.get("LOCAL_RANK", rank) != "0":
        time.sleep(HEAD_START_S)
        return error.exit_code
    where = "" if rank == "0" else f" [rank {rank}]"
    print(f"error{where}: {error}", file=sys.stderr, flush=True)
    tell_launcher(str(error))
    return error.exit_code


def show_interrupt(more: str = "") -> int:
    """Say that Ctrl-C ended the program, and `more`; returns the exit code."""
    # The launcher may pass the same key press on once more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"interrupted; {more}" if more else "interrupted", file=sys.stderr)
    return 128 + signal.SIGINT


def tell_launcher(text: str) -> None:
    """Leave `text` for torchrun and accelerate, whose report of forty lines then ends with it and not with a link."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        # The form that torch.distributed.elastic.multiprocessing.errors reads.
        report = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def install_hook() -> None:
    """Make two exceptions that nobody catches a message and not a traceback.

    A ToolkitError, raised for instance while a recipe file is being read, and a Ctrl-C while modules are imported: the
    line at which that was says nothing.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ToolkitError):
            # Once a process group exists torch catches what hooks print, and forgets it when they exit.
            with contextlib.redirect_stderr(sys.__stderr__):
                sys.exit(show(error))
        if isinstance(error, KeyboardInterrupt) and _is_importing(trace):
            sys.exit(show_interrupt())
        previous(kind, error, trace)

    sys.excepthook = hook


def _is_importing(trace: TracebackType | None) -> bool:
    """Whether `trace` ends while a module, other than the program itself, is being executed."""
    frames = (frame for frame, _ in traceback.walk_tb(trace))
    return any(frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__" for frame in frames)
