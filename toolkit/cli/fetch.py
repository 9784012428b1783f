"""`toolkit fetch NAME ...`: checkpoints that come by package name and data sets that are built on this host."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from toolkit.cache import cache_dir
from toolkit.errors import DataError, InputError, did_you_mean
from toolkit.models import assets


@dataclass(frozen=True)
class DataSet:
    """A data set built from this Python's own library, with train.jsonl and test.jsonl."""

    about: str
    builder: str
    """The function of toolkit.data.docstrings that writes it."""


DATA_SETS = {
    "python-docstrings": DataSet(
        "questions about functions of Python's library, as chat messages", "build_instructions"
    ),
    "python-packages": DataSet("docstrings labelled with the package they are from", "build_packages"),
}


def names() -> dict[str, str]:
    """Every name that can be fetched, with one line about it."""
    checkpoints = {name: asset.about for name, asset in assets.ASSETS.items()}
    return checkpoints | {name: data_set.about for name, data_set in DATA_SETS.items()}


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
        directory = assets.fetch(name, console) if name in assets.ASSETS else _build_data(name, console)
        print(directory)
    return 0


def resolve_data(location: str) -> str:
    """Where the data set `location` is: a name in DATA_SETS becomes its directory, anything else stays.

    Raises DataError for a name in DATA_SETS that was not built by this Python and this toolkit.
    """
    if location not in DATA_SETS or Path(location).exists():
        return location
    directory = _data_directory(location)
    if not assets.is_installed(directory, _data_stamp(location)):
        raise DataError(
            f"data set {location!r} is not fetched yet",
            expected=f"its files in {directory}",
            do=f"run `toolkit fetch {location}`",
        )
    return str(directory)


def _build_data(name: str, console: Console) -> Path:
    from toolkit.data import docstrings

    directory = _data_directory(name)
    build = getattr(docstrings, DATA_SETS[name].builder)
    with console.status(f"building {name}"):
        if assets.install(directory, _data_stamp(name), build):
            console.print(f"built {name} from Python {platform.python_version()}", highlight=False)
    return directory


def _data_directory(name: str) -> Path:
    return cache_dir() / "data" / name


def _data_stamp(name: str) -> dict[str, object]:
    """The bytes follow from the Python that is read and the code that reads it, so both are in the stamp."""
    source = importlib.util.find_spec("toolkit.data.docstrings")
    code = Path(source.origin).read_bytes() if source is not None and source.origin else b""
    return {
        "about": DATA_SETS[name].about,
        "python": platform.python_version(),
        "builder_sha256": hashlib.sha256(code).hexdigest(),
    }
