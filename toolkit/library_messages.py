"""What libraries log and warn about: kept off the screen, and shown when a run ends in a fault that nobody foresaw.

Below ERROR it concerns their own interfaces, or what is checked and said once by us. `--verbose` shows all of it.
"""

from __future__ import annotations

import io
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

MOST_HELD = 200
"""Different messages kept; of more, the newest."""

_held: OrderedDict[str, int] = OrderedDict()
_shown = False


def are_shown() -> bool:
    """Whether --verbose was given."""
    return _shown


def show_all() -> None:
    """Show from now on what libraries say, as they show it by themselves. Lasts until the end of `held`."""
    global _shown
    _shown = True
    logging.captureWarnings(False)


def passes(record: logging.LogRecord) -> bool:
    """A filter for loggers: errors pass, the rest is held back."""
    if _shown or record.levelno >= logging.ERROR:
        return True
    try:
        text = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit the text
        text = str(record.msg)
    _hold(f"{record.levelname} {record.name}: {text.rstrip()}".replace("\n", "\n  "))
    return False


def _hold(line: str) -> None:
    _held[line] = _held.pop(line, 0) + 1
    if len(_held) > MOST_HELD:
        _held.popitem(last=False)


@contextmanager
def prints_held(library: str) -> Iterator[None]:
    """Hold back what `library` prints on standard output within, as what it logs. Nothing of ours may be printed meanwhile."""
    if _shown:
        yield
        return
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            _hold(f"printed by {library}: {line}")


def _filter(record: logging.LogRecord) -> bool:
    return passes(record)


class _Logger(logging.Logger):
    """A logger that holds back from its first record on: libraries configure theirs when they are imported."""

    def __init__(self, name: str, level: int = logging.NOTSET) -> None:
        super().__init__(name, level)
        self.addFilter(_filter)


@contextmanager
def held() -> Iterator[None]:
    """Hold back what is logged below ERROR, and Python's warnings; an exception that is no message of ours brings it all."""
    global _shown
    before, usual = _shown, logging.getLoggerClass()
    for logger in _loggers():
        logger.addFilter(_filter)
    logging.setLoggerClass(_Logger)
    logging.captureWarnings(True)
    _held.clear()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.setLoggerClass(usual)
        for logger in _loggers():
            logger.removeFilter(_filter)
        _shown = before


def print_held() -> None:
    """Print on standard error what was held back."""
    if _held:
        print("held back until this fault (--verbose shows it at once):", file=sys.stderr)
    for line, count in list(_held.items()):  # another thread may still hear of something
        print(f"  {line}{f' [{count} times]' if count > 1 else ''}", file=sys.stderr)
    sys.stderr.flush()


def _loggers() -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]
