"""Data sets that `toolkit fetch NAME` builds on this host, from the library of the Python that runs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.cache import cache_dir
from toolkit.data.reading import docstrings
from toolkit.errors import DataError
from toolkit.install import install, is_installed


@dataclass(frozen=True)
class DataSet:
    """A data set with train.jsonl and test.jsonl."""

    about: str
    """One line for lists."""
    write: Callable[[Path], object]
    """Writes both files to a directory."""

    def stamp(self) -> dict[str, object]:
        """What SOURCE beside the files must say: the bytes follow from the Python that is read and the code that reads it."""
        code = Path(docstrings.__file__).read_bytes()
        return {
            "about": self.about,
            "python": platform.python_version(),
            "code_sha256": hashlib.sha256(code).hexdigest(),
        }


DATA_SETS = {
    "python-docstrings": DataSet(
        "questions about the Python library and their answers, as chat messages", docstrings.build_instructions
    ),
    "python-packages": DataSet(
        "docstrings of the Python library, labelled with their package", docstrings.build_packages
    ),
}


def resolve(location: str) -> str:
    """Where the data `location` is: a name in DATA_SETS becomes its directory; a path and a hub name stay.

    Raises DataError for a name in DATA_SETS that was not built by this Python and this toolkit.
    """
    if location not in DATA_SETS or Path(location).exists():
        return location
    target = _directory(location)
    if not is_installed(target, DATA_SETS[location].stamp()):
        raise DataError(
            f"data set {location!r} is not fetched yet",
            expected=f"its files in {target}",
            do=f"run `toolkit fetch {location}`",
        )
    return str(target)


def build(name: str) -> Path:
    """Build the data set `name`, one of DATA_SETS, unless it is there, and return its directory."""
    install(_directory(name), DATA_SETS[name].stamp(), DATA_SETS[name].write)
    return _directory(name)


def _directory(name: str) -> Path:
    return cache_dir() / "data" / name
