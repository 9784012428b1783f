"""Libraries' own warnings kept off the screen: what they are about is checked, and said once, by us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(library: str = "transformers") -> Iterator[None]:
    """Let `library` log errors only, for a while."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
