"""Where fetched checkpoints and built data sets live on this host."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache root: `$TOOLKIT_CACHE` if it is set and not empty, else `~/.cache/toolkit`. It need not exist yet."""
    chosen = os.environ.get("TOOLKIT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "toolkit"
