"""Which files on this host a location of the recipe names."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.data.reading.file_names import (
    COMPRESSED,
    KINDS,
    MEDIA,
    SUFFIXES,
    UNPACKING,
    is_data_file,
    is_metadata,
    kind_of,
    plain_name,
    unpacking,
)
from toolkit.data.reading.media_files import is_media, media_folder
from toolkit.data.reading.splits import files_of_split
from toolkit.errors import DataError, SourceAbsent, first_few
from toolkit.storage import CLOSED

_DESCRIPTIONS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # as in datasets
LEAST_LIKENESS = 0.7
"""Of two names, 1 where they are the same, for one to be taken for a slip of the other."""
_OTHER = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_location(location: str, split: str, field: str) -> None:
    """Raise DataError for a path that cannot be read by what it is and by the names in it, before anything is opened.

    What is no path is left to those who know the name. Imports nothing that takes long.
    """
    path = Path(location)
    try:
        if path.is_dir():
            if not is_saved(path):
                files = data_files(path, field)[0]
                if is_media(files):
                    media_folder(path, files, split, field)
                else:
                    files_of_split(files, path, split, field)
        elif path.exists():
            check_regular(path, location, field)
            kind_of(path, field)
        elif any(mark in location for mark in "*?["):
            matching_files(path, location, field)
        elif looks_local(location) or path.is_symlink():
            raise missing(path, location, field)
    except OSError as error:
        if error.errno in CLOSED:
            raise closed(location, field, error) from None
        raise


def closed(location: str, field: str, error: OSError) -> DataError:
    """The error for what this user may not read."""
    return DataError(
        f"{field}={location!r}: {error.filename or location}: {error.strerror}",
        expected="files this user may read, and a cache directory it may write to",
        do="change the permissions, or set TOOLKIT_CACHE if it is the cache",
    )


def looks_local(location: str) -> bool:
    """Whether `location` is meant as a path: a hub name is "name" or "owner/name" and ends in no suffix of a file."""
    suffix = Path(location).suffix.lower()
    is_path = location.startswith((".", "/", "~", "-")) or location.count("/") > 1
    return is_path or suffix in KINDS or suffix in COMPRESSED or suffix in UNPACKING


def check_regular(path: Path, location: str, field: str) -> None:
    """Raise DataError for what exists and has no content of its own: opening it might wait for ever, or never end."""
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind in _OTHER:
        raise DataError(
            f"{field}={location!r}: {str(path)!r} is {_OTHER[kind]}, not a file",
            expected="a file, which every process can read from its beginning, more than once",
            do=f"write what comes from it to a file first, for instance: cat {path} > rows.jsonl",
        )


def is_saved(directory: Path) -> bool:
    """Whether `save_to_disk` of datasets wrote `directory`."""
    return (directory / "state.json").exists() or (directory / "dataset_dict.json").exists()


def data_files(directory: Path, field: str) -> tuple[list[Path], list[Path]]:
    """The files of `directory` and the folders in it that can be read, by name, and what else holds data there: data sets
    that `save_to_disk` wrote, and archives.

    Images and recordings are such files where nothing else is but tables about them; beside others they are what those
    name. Hidden ones are left out, and what describes a data set. Raises DataError for a link that leads nowhere, or a pipe.
    """
    found = sorted(_walk(directory))
    folders = {path for path in found if path.is_dir() and is_saved(path)}
    saved = [path for path in found if path in folders and folders.isdisjoint(path.parents)]
    named = [path for path in found if folders.isdisjoint(path.parents) and not path.is_dir()]
    files = [path for path in named if is_data_file(path) and path.name not in _DESCRIPTIONS]
    media = [path for path in named if path.suffix.lower() in MEDIA]
    if media and all(is_metadata(path) or plain_name(path).suffix.lower() == ".txt" for path in files):
        # A text beside images is a note.
        files = sorted([*filter(is_metadata, files), *media])
    for path in files:
        if path.suffix.lower() not in MEDIA:  # of one that is missing its example speaks (data.unreadable)
            _check_there(path, str(directory), field)
    archives = [path for path in named if plain_name(path).suffix.lower() in UNPACKING]
    if files:
        return files, [*saved, *archives]
    if saved:
        raise DataError(
            f"{field}={str(directory)!r} holds data sets written by `save_to_disk`: "
            f"{first_few([str(path.relative_to(directory)) for path in saved])}",
            expected="one of them",
            do=f"point {field} to it, for instance {field}={str(saved[0])!r}",
        )
    raise DataError(
        f"{field}={str(directory)!r} holds no data file"
        + (f", but an archive: {archives[0].name}" if archives else ""),
        expected=f"files ending in {SUFFIXES}, a folder of images or recordings for each class, or what `save_to_disk` of "
        "datasets writes",
        do=f"unpack it: {unpacking(archives[0])}" if archives else f"point {field} to the directory with the files",
    )


def _check_there(path: Path, location: str, field: str) -> None:
    if not path.exists():
        raise DataError(
            f"{field}={location!r}: {str(path)!r} is a link to {path.readlink()}, which does not exist",
            expected="links that lead to a file",
            do="mend the link, or remove it",
        )
    check_regular(path, location, field)


def _walk(directory: Path) -> Iterator[Path]:
    """All files and folders in `directory`, also behind links to folders. Raises OSError for one that cannot be listed."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(directory, followlinks=True, onerror=fail):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above, or twice to the same one
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in [*folders, *files] if not name.startswith("."))


def matching_files(pattern: Path, location: str, field: str) -> list[Path]:
    """The files that `pattern` matches, by name: as in a shell, without hidden ones, and also behind links to folders.

    Raises DataError where there is none, and for a link that leads nowhere, or a pipe.
    """
    root, parts = Path(pattern.anchor or "."), [part for part in pattern.parts if part != pattern.anchor]
    while len(parts) > 1 and (root / parts[0]).exists():  # taken as it is: a folder's own name may hold brackets
        root, parts = root / parts[0], parts[1:]
    may_hide = any(part.startswith(".") for part in parts)
    found: dict[tuple[Path, str], Path] = {}
    for path in sorted(_matching(root, parts), key=lambda path: (len(path.parts), path)):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not path.is_dir() and (may_hide or not hidden):
            found.setdefault((path.parent.resolve(), path.name), path)  # once, by however many links to its folder
    files = sorted(found.values())
    if not files:
        raise SourceAbsent(
            f"{field}={location!r} matches no file",
            expected="a pattern that matches at least one file",
            do=f"list what it matches with: ls {location}",
        )
    for path in files:
        _check_there(path, location, field)
    return files


def _matching(root: Path, parts: list[str]) -> Iterator[Path]:
    """What the pattern `parts` matches in `root`. `**` stands for any folders, as _walk finds them; glob skips some."""
    if "**" not in parts:
        yield from root.glob(str(Path(*parts)))
        return
    place = parts.index("**")
    for start in root.glob(str(Path(*parts[:place]))) if place else [root]:
        if start.is_dir():
            for folder in [start, *(path for path in _walk(start) if path.is_dir())]:
                yield from _matching(folder, parts[place + 1 :] or ["*"])


def _meant(name: str, beside: Sequence[str]) -> str:
    """A word about the one of `beside` that is most like `name`, the endings aside: most files share those."""

    def likeness(other: str) -> float:
        one, two = (plain_name(Path(file)).stem.casefold() for file in (name, other))
        return difflib.SequenceMatcher(None, one, two).ratio()

    near = max(beside, key=likeness, default=None)
    return f" (did you mean {near!r}?)" if near is not None and likeness(near) >= LEAST_LIKENESS else ""


def missing(path: Path, location: str, field: str) -> DataError:
    """The error for a path that does not exist."""
    parent = path.parent
    if not parent.is_dir():
        return SourceAbsent(
            f"{field}={location!r} does not exist, and neither does the directory {str(parent)!r}",
            expected="an existing file or directory",
            do="correct the path; relative paths start at the current directory",
        )
    if path.is_symlink():
        return DataError(
            f"{field}={location!r} is a link to {path.readlink()}, which does not exist",
            expected="an existing file or directory",
            do="mend the link, or give the file itself",
        )
    beside = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    meant = _meant(path.name, beside)
    return (DataError if meant else SourceAbsent)(
        f"{field}={location!r} does not exist{meant}",
        expected=f"an existing file or directory; beside it are: {first_few(beside)}",
        do="correct the path; relative paths start at the current directory",
    )
