"""Open what `data.train` and `data.evaluation` name: local files, saved data sets, hub names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import datasets
import pyarrow

from toolkit.data.reading.arrow_cache import no_rows
from toolkit.data.reading.content import combined, files_digest, sampled_digest
from toolkit.data.reading.file_names import kind_of, plain_name
from toolkit.data.reading.files import read_files
from toolkit.data.reading.find_files import (
    check_regular,
    closed,
    data_files,
    is_saved,
    looks_local,
    matching_files,
    missing,
)
from toolkit.data.reading.hub_rows import Hub, open_hub
from toolkit.data.reading.media_files import is_media, media_folder
from toolkit.data.reading.media_folders import read_media
from toolkit.data.reading.splits import files_of_split, unknown_split
from toolkit.data.reading.text_files import check_is_data
from toolkit.data.reading.undecoded import undecoded
from toolkit.errors import DataError, StorageError, first_few, innermost, one_line
from toolkit.library_messages import are_shown
from toolkit.storage import CLOSED, FULL

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
    remarks: tuple[str, ...] = ()
    """What was read otherwise than row by row."""
    place: Callable[[int], int] | None = None
    """Index of a row -> its index in the files; None: the same."""
    folder: Path | None = None
    """Where paths in the rows begin; None: where this program was started."""


def open_source(
    location: str,
    *,
    split: str,
    cache_dir: Path,
    subset: str | None = None,
    streaming: bool = False,
    max_examples: int | None = None,
    field: str = "data.train",
    whole: bool = True,
) -> Source:
    """The rows of `location`: an IterableDataset when `streaming`, else a Dataset; the first `max_examples` of them.

    `split` selects files by the names of files and folders in a directory (train.jsonl, data/test-00000-of-00002.parquet,
    validation/part-0.csv), a part of a saved data set or of a hub data set; a single file or a pattern is one split
    whatever its name. `field` is the recipe field, for messages. Raises DataError for everything that cannot be opened
    or has no rows. Without `whole` a stream of files is only looked at: nothing is read to its end.
    """
    with _quiet(), _access(location, field):
        source = _open(location, split, subset, streaming, field, cache_dir, whole)
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


def _open(
    location: str, split: str, subset: str | None, streaming: bool, field: str, cache_dir: Path, whole: bool
) -> Source:
    path = Path(location)
    if path.is_dir():
        if is_saved(path):
            return _open_saved(path, split, streaming, field, cache_dir)
        found, left_out = data_files(path, field)
        if is_media(found):
            folder = media_folder(path, found, split, field)
            read = read_media(folder, streaming=streaming, cache_dir=cache_dir)
            return Source(
                read.rows, read.content, folder.files, (*left_out, *folder.left_out), remarks=read.remarks, folder=path
            )
        files, of_no_split = files_of_split(found, path, split, field)
        return _open_files(files, location, streaming, field, cache_dir, whole, [*of_no_split, *left_out])
    if path.exists():
        check_regular(path, location, field)
        return _open_files([path], location, streaming, field, cache_dir, whole)
    if any(mark in location for mark in "*?["):
        return _open_files(matching_files(path, location, field), location, streaming, field, cache_dir, whole)
    if looks_local(location) or path.is_symlink():
        raise missing(path, location, field)
    given = open_hub(Hub(location, split, subset, streaming, cache_dir), field)
    if isinstance(given, list):
        return _open_files(given, location, streaming, field, cache_dir, whole)
    return Source(given.rows, given.content, remarks=given.remarks)


def _open_files(
    files: Sequence[Path],
    location: str,
    streaming: bool,
    field: str,
    cache_dir: Path,
    whole: bool,
    left_out: Sequence[Path] = (),
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
    _check_no_copy(files, field)
    kind = kinds.pop()
    try:
        read = read_files(files, kind, streaming=streaming, cache_dir=cache_dir, whole=whole)
    except DataError as error:
        raise _named(error, field) from None
    except datasets.exceptions.DatasetsError as error:
        cause = innermost(error)
        if isinstance(cause, DataError):
            raise _named(cause, field) from None
        if not isinstance(cause, OSError | pyarrow.ArrowException):  # a fault of ours
            raise
        raise DataError(
            f"{field}={location!r} cannot be read as {kind}: {one_line(innermost(error))}",
            expected=f"what its name says, a well-formed {kind} file",
            do="repair the file, or write it anew from its source",
        ) from None
    folders = {path.parent for path in files}
    folder = folders.pop() if len(folders) == 1 else Path(os.path.commonpath(folders))
    return Source(read.rows, read.content, tuple(files), tuple(left_out), read.unread, read.remarks, folder=folder)


def _check_no_copy(files: Sequence[Path], field: str) -> None:
    """Raise DataError for a file that is there twice, plain and compressed: its rows would be read twice."""
    plain: dict[Path, Path] = {}
    for path in files:
        other = plain.setdefault(plain_name(path), path)
        if other is not path:
            raise DataError(
                f"{field} names both {str(other)!r} and {str(path)!r}",
                expected="each file once, compressed or not",
                do=f"remove one of them, or name the files with a pattern: {field}='{path.parent}/*{path.suffix}'",
            )


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
            f"{field}={str(path)!r} looks like a data set written by `save_to_disk`, but: {one_line(innermost(error))}",
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
    saved = undecoded(saved)
    return Source(saved.to_iterable_dataset() if streaming else saved, content, files)


def _check_file(path: Path, field: str) -> None:
    try:
        check_is_data(path)
    except DataError as error:
        raise _named(error, field) from None


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
            raise closed(location, field, error) from None
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and log lines of datasets: every rank opens the source, and errors are raised."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(level if are_shown() else datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
