"""Local files of one kind as the rows of a data set: in a cache by their content, or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import filelock
from pyarrow import parquet

from toolkit.data.reading.arrow_cache import cached_rows
from toolkit.data.reading.column_names import check_same
from toolkit.data.reading.content import combined, files_digest, sampled_digest
from toolkit.data.reading.content_kind import check_kind, json_in_text, renamed
from toolkit.data.reading.csv_rows import csv_header, is_numbered
from toolkit.data.reading.file_names import kind_of
from toolkit.data.reading.idx_rows import idx_features, labels_beside
from toolkit.data.reading.json_rows import decode, json_texts, wrapping_key
from toolkit.data.reading.parquet_rows import parquet_features
from toolkit.data.reading.tables import tables
from toolkit.data.reading.text_files import check_is_data
from toolkit.data.reading.undecoded import undecoded_features
from toolkit.errors import first_few

_FORMAT = 2  # part of what says that a stream was checked: raise it when the check finds more


@dataclass(frozen=True)
class Read:
    """What was read of some files."""

    rows: Any
    content: str
    """Digest of what the files hold."""
    unread: tuple[str, ...] = ()
    """Columns left out, since rows cannot hold values of their type."""
    remarks: tuple[str, ...] = ()
    """What was read otherwise than row by row."""


def read_files(paths: Sequence[Path], kind: str, *, streaming: bool, cache_dir: Path, whole: bool = True) -> Read:
    """The rows of `paths`, all of one `kind`.

    Paths are taken as they are, never as patterns. Raises DataError, with the file and the line, for what cannot be
    read. A stream of JSON is read through once for that, unless its content was before; other streams may be too large
    for it: their content is known by a sample, and what is wrong with a row is found where the row is read. Without
    `whole` that holds for JSON, too: its rows are looked at, not trained.
    """
    for path in paths:
        check_is_data(path)
        if kind != "idx":  # which says itself what is wrong with it
            check_kind(path, kind)
    paths = list(paths)
    read = [*paths, *map(labels_beside, paths)] if kind == "idx" else paths
    names = tuple(str(path.resolve()) for path in paths)
    features, unread = _features(paths, kind)
    remarks = tuple(_REMARKS[kind](paths)) if kind in _REMARKS else ()
    if streaming and kind != "json":
        rows = datasets.IterableDataset.from_generator(
            _stream,
            features=features if kind in ("parquet", "idx") else None,
            gen_kwargs={"names": names, "kind": kind, "columns": tuple(features)},
        )
        return Read(rows, combined(kind, sampled_digest(read)), unread, remarks)
    looks_only = streaming and not whole
    content = combined(kind, sampled_digest(paths) if looks_only else files_digest(read, cache_dir))
    if streaming:
        if not looks_only:
            _check_json(paths, cache_dir / "checked" / combined(_FORMAT, content))
        return Read(
            datasets.IterableDataset.from_generator(_json_stream, gen_kwargs={"names": names}), content, (), remarks
        )
    rows = cached_rows(names, kind, features, content, cache_dir / "datasets")
    return Read(rows.with_transform(_decoded) if kind == "json" else rows, content, unread, remarks)


def num_rows(path: Path) -> int:
    """How many rows the file `path` has; all but Parquet is read for it. Raises DataError for no file of rows."""
    kind = kind_of(path, "data")
    if kind == "parquet":
        return int(parquet.read_metadata(path).num_rows)
    return sum(len(table) for table in tables(str(path), kind, _features([path], kind)[0]))


def _features(paths: Sequence[Path], kind: str) -> tuple[datasets.Features, tuple[str, ...]]:
    """The columns of the cached table. JSON stays text there: a table's columns have one type, JSON values do not."""
    if kind == "parquet":
        features, unread = parquet_features(paths)
        return undecoded_features(features), tuple(unread)
    if kind == "idx":
        return idx_features(), ()
    names = [kind]
    if kind == "csv":
        columns = [csv_header(path) for path in paths]
        check_same(paths, columns)
        names = columns[0]
    return datasets.Features({name: datasets.Value("large_string") for name in names}), ()


def _numbered(paths: Sequence[Path]) -> Iterator[str]:
    """A line on the CSV files whose first column has no name."""
    files = [path.name for path in paths if is_numbered(path)]
    if files:
        yield f"not read: the first column of {first_few(files, 4)}, which has no name (pandas writes the numbers of rows there)"


def _json_texts(paths: Sequence[Path]) -> Iterator[str]:
    """A line on the text files that hold JSON."""
    for path in filter(json_in_text, paths):
        yield (
            f"the lines of {path.name} are JSON objects, and learned as they stand, braces and all; to learn what is in "
            f"their columns, rename it: {renamed(path, '.jsonl')}"
        )


def _wrapped(paths: Sequence[Path]) -> Iterator[str]:
    """A line on each JSON file whose rows are a list inside an object."""
    for path in paths:
        key = wrapping_key(path)
        if key is not None:
            yield f"the rows of {path.name} are the list {key!r} in it"


_REMARKS = {"csv": _numbered, "text": _json_texts, "json": _wrapped}
"""Kind -> what is said about files of it."""


def _check_json(paths: Sequence[Path], note: Path) -> None:
    """Read every row of `paths` unless `note` says that one process did."""
    if note.exists():
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{note}.lock"):
        if not note.exists():
            for path in paths:
                for _ in json_texts(path):
                    pass
            note.touch()


def _stream(names: tuple[str, ...], kind: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for name in names:
        for table in tables(name, kind, columns):
            yield from table.to_pylist()


def _json_stream(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for name in names:
        for text in json_texts(Path(name)):
            yield {key: values[0] for key, values in decode([text]).items()}


def _decoded(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    return decode(batch["json"])
