"""Imports of torch and of what builds on it, without looking for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import within: half a million objects come with such modules and stay.

    No garbage collection visits them, now, later or when Python exits: that is a quarter of the seconds that a plan takes.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if is_on:
            gc.enable()
