"""The one place where a command's outcome becomes an exit code, whatever its standard output is connected to."""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from toolkit.errors import StorageError, ToolkitError, show, show_interrupt, tell_launcher
from toolkit.library_messages import held, print_held


def exit_code_of(action: Callable[[], int]) -> int:
    """What `action` returns; the code of a ToolkitError, after its message; 0 when the reader of the output has left.

    1 where standard output takes no more (a full disk); 130 after a Ctrl-C that found no loop to end, or did not want to
    wait for it; what it holds, if anything, is said. What libraries say is held back: a fault that nobody foresaw brings it, before its traceback.
    """
    _prepare_streams()
    code = 0
    try:
        with reader_may_leave():
            code = _outcome(action)
    except OSError as error:
        if not _output_fails():
            _tell_all(error)
            raise
        _let_go_of_output()
        return show(_unwritable(error))
    return code


def leave(code: int) -> NoReturn:
    """End this process with `code`; after torch was imported without taking its half a million objects apart, which is a
    third of a second for nothing. What was registered for the end of Python is done."""
    if "torch" not in sys.modules or threading.active_count() > 1:
        raise SystemExit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _outcome(action: Callable[[], int]) -> int:
    try:
        with held():
            return action()
    except ToolkitError as error:
        return show(error)
    except OSError:
        raise  # perhaps the output's own
    except Exception as error:
        _tell_all(error)
        raise
    except KeyboardInterrupt as interrupt:
        return show_interrupt(str(interrupt))


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """What is printed inside may find that its reader (head, less) has seen enough: then the rest goes nowhere."""
    try:
        try:
            yield
        finally:
            # A short text is still in the buffer: find out here whether it can be written, not while Python exits.
            sys.stdout.flush()
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # rich's way to end
            raise
        _let_go_of_output()
    except BrokenPipeError:
        if not _reader_left():
            raise
        _let_go_of_output()


def _tell_all(error: Exception) -> None:
    """Before the traceback of what nobody foresaw: what libraries had said, and the launcher's share."""
    print_held()
    tell_launcher(f"{type(error).__name__}: {error}\n  its traceback stands above")


def _prepare_streams() -> None:
    if sys.stdout is None:  # closed by the caller: >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # What a user's file holds is shown as it is where the stream can, and never ends the command where it cannot.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_output() -> None:
    """Without this Python would complain once more while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_fails() -> bool:
    """Whether it is standard output that could not be written, and not some other file."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def _reader_left() -> bool:
    """Whether it is standard output that is broken, and not, say, a connection between processes."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _unwritable(error: OSError) -> StorageError:
    return StorageError(
        f"standard output cannot be written: {error.strerror}",
        expected="a terminal, a pipe or a file on a disk with room",
        do="free space, or send the output elsewhere",
    )
