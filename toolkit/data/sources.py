"""Open what `data.train` and `data.evaluation` name: local files, saved data sets, hub names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import datasets
import pyarrow

from toolkit.data.arrow_cache import no_rows
from toolkit.data.content import combined, files_digest, sampled_digest
from toolkit.data.files import KINDS, SUFFIXES, kind_of, read_files
from toolkit.data.splits import files_of_split, unknown_split
from toolkit.data.storage import CLOSED, FULL
from toolkit.data.text_files import check_is_data
from toolkit.errors import DataError, StorageError, did_you_mean, first_few

_DESCRIPTIONS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # as in datasets

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class Source:
    """The rows that one field of the recipe names, and what they are."""

    rows: Rows
    """In order; a row is a mapping from column to value."""
    content: str
    """Digest of what decides the rows: their files' bytes (of most streams a sample, a hub's own identity), the split and
    the number of rows taken. The same on every host, under every path and in every cache folder."""
    files: tuple[Path, ...] = ()
    """The local files read; none for a hub data set."""
    left_out: tuple[Path, ...] = ()
    """What else is in the same directory: files named after no split while others are, saved data sets beside files."""
    unread: tuple[str, ...] = ()
    """Columns left out, since rows cannot hold values of their type."""


def open_source(
    location: str,
    *,
    split: str,
    cache_dir: Path,
    subset: str | None = None,
    streaming: bool = False,
    max_examples: int | None = None,
    field: str = "data.train",
) -> Source:
    """The rows of `location`: an IterableDataset when `streaming`, else a Dataset; the first `max_examples` of them.

    `split` selects files by the names of files and folders in a directory (train.jsonl, data/test-00000-of-00002.parquet,
    validation/part-0.csv), a part of a saved data set or of a hub data set; a single file or a pattern is one split
    whatever its name. `field` is the recipe field, for messages. Raises DataError for everything that cannot be opened
    or has no rows.
    """
    with _quiet(), _access(location, field):
        source = _open(location, split, subset, streaming, field, cache_dir)
        rows, content = source.rows, source.content
        if max_examples is not None:
            rows = rows.take(max_examples) if streaming else rows.select(range(min(max_examples, len(rows))))
            content = combined(content, max_examples)
        _check_first(rows, location, field)
    return replace(source, rows=rows, content=content)


def _check_first(rows: Rows, location: str, field: str) -> None:
    try:
        first = next(iter(rows), None)
    except DataError as error:  # the first row of a stream
        raise _named(error, field) from None
    if first is None:
        raise _named(no_rows(location, field), field)


def _open(location: str, split: str, subset: str | None, streaming: bool, field: str, cache_dir: Path) -> Source:
    path = Path(location)
    if path.is_dir():
        if _is_saved(path):
            return _open_saved(path, split, streaming, field, cache_dir)
        found, saved = _data_files(path, field)
        files, left_out = files_of_split(found, path, split, field)
        return _open_files(files, location, streaming, field, cache_dir, [*left_out, *saved])
    if path.exists():
        return _open_files([path], location, streaming, field, cache_dir)
    if any(mark in location for mark in "*?["):
        return _open_files(_matches(path, location, field), location, streaming, field, cache_dir)
    if _looks_local(location):
        raise _missing(path, location, field)
    return _open_hub(location, split, subset, streaming, field, cache_dir)


def _is_saved(directory: Path) -> bool:
    return (directory / "state.json").exists() or (directory / "dataset_dict.json").exists()


def _data_files(directory: Path, field: str) -> tuple[list[Path], list[Path]]:
    """The files of `directory` and the folders in it that can be read, by name, and the saved data sets beside them.

    Hidden ones are left out, and what describes a data set.
    """
    found = sorted(
        path
        for path in directory.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )
    folders = {path for path in found if path.is_dir() and _is_saved(path)}
    saved = [path for path in found if path in folders and folders.isdisjoint(path.parents)]
    files = [
        path
        for path in found
        if path.suffix.lower() in KINDS
        and path.name not in _DESCRIPTIONS
        and path.is_file()
        and folders.isdisjoint(path.parents)
    ]
    if files:
        return files, saved
    if saved:
        raise DataError(
            f"{field}={str(directory)!r} holds data sets written by `save_to_disk`: "
            f"{first_few([str(path.relative_to(directory)) for path in saved])}",
            expected="one of them",
            do=f"point {field} to it, for instance {field}={str(saved[0])!r}",
        )
    raise DataError(
        f"{field}={str(directory)!r} holds no data file",
        expected=f"files ending in {SUFFIXES}, or what `save_to_disk` of datasets writes",
        do=f"point {field} to the directory with the files",
    )


def _matches(pattern: Path, location: str, field: str) -> list[Path]:
    root, parts = Path(pattern.anchor or "."), [part for part in pattern.parts if part != pattern.anchor]
    while len(parts) > 1 and (root / parts[0]).exists():  # taken as it is: a folder's own name may hold brackets
        root, parts = root / parts[0], parts[1:]
    files = sorted(path for path in root.glob(str(Path(*parts))) if path.is_file())
    if not files:
        raise DataError(
            f"{field}={location!r} matches no file",
            expected="a pattern that matches at least one file",
            do=f"list what it matches with: ls {location}",
        )
    return files


def _looks_local(location: str) -> bool:
    # A hub name is "name" or "owner/name" and has no suffix that we would read.
    return location.startswith((".", "/", "~")) or location.count("/") > 1 or Path(location).suffix.lower() in KINDS


def _missing(path: Path, location: str, field: str) -> DataError:
    parent = path.parent
    if not parent.is_dir():
        return DataError(
            f"{field}={location!r} does not exist, and neither does the directory {str(parent)!r}",
            expected="an existing file or directory",
            do="correct the path; relative paths start at the current directory",
        )
    beside = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    return DataError(
        f"{field}={location!r} does not exist{did_you_mean(path.name, beside)}",
        expected=f"an existing file or directory; beside it are: {first_few(beside)}",
        do="correct the path; relative paths start at the current directory",
    )


def _open_files(
    files: Sequence[Path], location: str, streaming: bool, field: str, cache_dir: Path, left_out: Sequence[Path] = ()
) -> Source:
    kinds = {kind_of(path, field) for path in files}
    if len(kinds) > 1:
        raise DataError(
            f"{field}={location!r} mixes kinds of files: {first_few([path.name for path in files])}",
            expected="files of one kind",
            do=f"select them with a pattern, for instance {field}='{Path(location) / '*.jsonl'}'",
        )
    for path in files:
        if path.stat().st_size == 0:
            raise _named(no_rows(str(path), field), field)
    kind = kinds.pop()
    try:
        read = read_files(files, kind, streaming=streaming, cache_dir=cache_dir)
    except DataError as error:
        raise _named(error, field) from None
    except datasets.exceptions.DatasetsError as error:
        cause = _innermost(error)
        if isinstance(cause, DataError):
            raise _named(cause, field) from None
        if not isinstance(cause, OSError | pyarrow.ArrowException):  # a fault of ours
            raise
        raise DataError(
            f"{field}={location!r} cannot be read as {kind}: {_reason(error)}",
            expected=f"what its name says, a well-formed {kind} file",
            do="repair the file, or write it anew from its source",
        ) from None
    return Source(read.rows, read.content, tuple(files), tuple(left_out), read.unread)


def _named(error: DataError, field: str) -> DataError:
    """`error` about a file, with the name of the recipe's field before it."""
    return DataError(f"{field}={error.what}", expected=error.expected, do=error.do)


def _open_saved(path: Path, split: str, streaming: bool, field: str, cache_dir: Path) -> Source:
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        for file in sorted(path.rglob("*.arrow")):
            _check_file(file, field)
        raise DataError(
            f"{field}={str(path)!r} looks like a data set written by `save_to_disk`, but: {_reason(error)}",
            expected="all files that `save_to_disk` wrote",
            do="write it again, or copy the whole directory",
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise unknown_split(split, sorted(saved), str(path), field)
        saved, path = saved[split], path / split
    state = json.loads((path / "state.json").read_text())
    files = tuple(path / entry["filename"] for entry in state["_data_files"])
    content = combined("saved", sampled_digest(files) if streaming else files_digest(files, cache_dir))
    return Source(saved.to_iterable_dataset() if streaming else saved, content, files)


def _check_file(path: Path, field: str) -> None:
    try:
        check_is_data(path)
    except DataError as error:
        raise _named(error, field) from None


def _open_hub(location: str, split: str, subset: str | None, streaming: bool, field: str, cache_dir: Path) -> Source:
    try:
        rows = datasets.load_dataset(
            location, subset, split=split, streaming=streaming, cache_dir=str(cache_dir / "datasets")
        )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{field}={location!r} is no local file or directory, and the hub did not give it: {_reason(error)}",
            expected="an existing path, a name that `toolkit fetch` knows, or the name of a hub data set and a network",
            do="correct the name; without a network, download the data set elsewhere and give its path",
        ) from None
    except ValueError as error:  # an unknown split or subset: the message lists those there are
        raise DataError(
            f"{field}={location!r} with split {split!r} and data.subset={subset!r}: {_reason(error)}",
            expected="a split and a subset that the data set has",
            do="correct the split or data.subset",
        ) from None
    # Its own fingerprint follows from the hub's revision, the files and the split; a stream has only its name.
    identity = None if streaming else rows._fingerprint
    return Source(rows, combined("hub", identity or [location, subset, split]))


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    cause = _innermost(error)
    return " ".join(str(cause).split())[:300] or type(cause).__name__


@contextlib.contextmanager
def _access(location: str, field: str) -> Iterator[None]:
    try:
        yield
    except (DataError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL:
            raise StorageError(
                f"no space left while reading {field}={location!r} into the cache",
                expected="room for another copy of the data",
                do="free some space, or set TOOLKIT_CACHE to a directory on a larger disk",
            ) from None
        if isinstance(error, OSError) and number in CLOSED:
            raise DataError(
                f"{field}={location!r}: {error.filename or location}: {error.strerror}",
                expected="files this user may read, and a cache directory it may write to",
                do="change the permissions, or set TOOLKIT_CACHE if it is the cache",
            ) from None
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and log lines of datasets: every rank opens the source, and errors are raised."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
