"""`toolkit fetch NAME ...`: checkpoints that come by package name and data sets that are built on this host."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from toolkit.data.reading import built
from toolkit.errors import InputError, did_you_mean
from toolkit.models import assets


def names() -> dict[str, str]:
    """Every name that can be fetched, with one line about it."""
    checkpoints = {name: asset.about for name, asset in assets.ASSETS.items()}
    return checkpoints | {name: data_set.about for name, data_set in built.DATA_SETS.items()}


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
        if name in assets.ASSETS:
            print(assets.fetch(name, console))
        else:
            with console.status(f"building {name}"):
                directory = built.build(name)
            print(directory)
    return 0
