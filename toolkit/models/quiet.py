"""Libraries' own warnings kept off the screen: what they are about is checked, and said once, by us."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from toolkit.library_messages import are_shown


@contextmanager
def quiet(library: str = "transformers") -> Iterator[None]:
    """Let `library` log errors only, for a while; --verbose lets it speak."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(level if are_shown() else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def silent() -> Iterator[None]:
    """Nobody warns for a while, and transformers draws no bars, which it does whatever the terminal is. Faults are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
