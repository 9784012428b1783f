"""The one place where a command's outcome becomes an exit code."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

from toolkit.errors import ToolkitError, show


def exit_code_of(action: Callable[[], int]) -> int:
    """What `action` returns; the code of a ToolkitError, after its message; 0 when the reader of the output has left.

    130 after a Ctrl-C that found no loop to end, or did not want to wait for it.
    """
    try:
        try:
            return action()
        except ToolkitError as error:
            return show(error)
        except KeyboardInterrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print("interrupted; --resume auto continues a run from its last checkpoint", file=sys.stderr)
            return 128 + signal.SIGINT
        finally:
            # A short text is still in the buffer: find out here whether anyone reads it, not while Python exits.
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        # The reader (head, less) has seen enough; without this Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _reader_left() -> bool:
    """Whether it is standard output that is broken, and not, say, a connection between processes."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
