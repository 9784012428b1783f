"""Libraries' own warnings kept off the screen: what they are about is checked, and said once, by us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
