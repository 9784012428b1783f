"""Imports of many modules at once, without looking for garbage."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import within: what comes with such modules, half a million objects with torch, stays.

    No garbage collection visits it, now, later or when Python exits: that is a quarter of the seconds that a plan takes, and
    a tenth of those of a dry run.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if is_on:
            gc.enable()


@contextmanager
def as_if_absent(*packages: str) -> Iterator[None]:
    """Import within as where `packages` are not installed: libraries that use them if they can do without them.

    Nothing is hidden that was imported before, nor afterwards.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
