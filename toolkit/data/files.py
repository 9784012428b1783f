"""Local files of one kind as the rows of a data set: in a cache by their content, or as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from toolkit.data.content import combined, files_digest
from toolkit.data.csv_rows import csv_header, csv_rows
from toolkit.data.json_rows import decode, json_texts
from toolkit.data.text_files import check_is_data, open_text
from toolkit.errors import DataError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
SUFFIXES = ", ".join(KINDS)

_FORMAT = 1  # part of every cache entry: raise it when this package reads a file differently


def kind_of(path: Path, field: str) -> str:
    """How `path` is read, by its suffix. Raises DataError for one that is not read; `field` names the recipe's field."""
    suffix = path.suffix.lower()
    if suffix in KINDS:
        return KINDS[suffix]
    hint = "decompress it first" if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else "convert it"
    raise DataError(
        f"{field}={str(path)!r} ends in {suffix or 'nothing'!r}, which is not read",
        expected=f"a file ending in one of {SUFFIXES}",
        do=f"{hint}, or rename it if it is one of these",
    )


def no_rows(location: str, field: str = "the recipe") -> DataError:
    """The error for a source without a single row; `field` is what names it."""
    return DataError(
        f"{location!r} has no rows",
        expected="at least one row",
        do=f"check how the file was written, or point {field} to another one",
    )


def read_files(paths: Sequence[Path], kind: str, *, streaming: bool, cache_dir: Path) -> tuple[Any, str]:
    """The rows of `paths`, all of one `kind`, and a digest of their content.

    Paths are taken as they are, never as patterns. Raises DataError, with the file and the line, for what cannot be
    read; a stream is read through once for that, unless its content was before.
    """
    for path in paths:
        check_is_data(path)
    content = combined(kind, files_digest(paths, cache_dir))
    names = tuple(str(path.resolve()) for path in paths)
    features = _features(paths, kind)
    if streaming:
        checked = cache_dir / "checked" / combined(_FORMAT, content)
        if kind != "parquet" and not checked.exists():
            for _ in _stored(names, kind):
                pass
            checked.parent.mkdir(parents=True, exist_ok=True)
            checked.touch()
        return datasets.IterableDataset.from_generator(_plain, gen_kwargs={"names": names, "kind": kind}), content
    rows = datasets.Dataset.from_generator(
        _cached,
        features=features,
        cache_dir=str(cache_dir / "datasets"),
        gen_kwargs={"names": names, "kind": kind, "content": content, "version": _FORMAT},
    )
    return (rows.with_transform(_decoded) if kind == "json" else rows), content


def _features(paths: Sequence[Path], kind: str) -> datasets.Features:
    """The columns of the cached table. JSON stays text there: a table's columns have one type, JSON values do not."""
    if kind == "csv":
        names = _same_in_all(paths, [csv_header(path) for path in paths])
        return datasets.Features({name: datasets.Value("large_string") for name in names})
    if kind == "parquet":
        schemas = [_parquet_schema(path) for path in paths]
        _same_in_all(paths, [sorted(schema.names) for schema in schemas])
        return datasets.Features.from_arrow_schema(_one_schema(paths, schemas))
    return datasets.Features({kind: datasets.Value("large_string")})


def _same_in_all(paths: Sequence[Path], columns: Sequence[list[str]]) -> list[str]:
    for path, found in zip(paths, columns, strict=True):
        if found != columns[0]:
            raise DataError(
                f"{str(path)!r} has the columns {', '.join(found)}, but {str(paths[0])!r} has {', '.join(columns[0])}",
                expected="the same columns in all files of one source",
                do="read the files apart, or write them with the same columns",
            )
    return columns[0]


def _one_schema(paths: Sequence[Path], schemas: Sequence[pyarrow.Schema]) -> pyarrow.Schema:
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            f"the columns of {str(paths[0])!r} and the {len(paths) - 1:,} files beside it differ in type: {error}",
            expected="the same type of a column in all files of one source",
            do="read the files apart, or write them with the same types",
        ) from None


def _parquet_schema(path: Path) -> pyarrow.Schema:
    with _parquet_errors(path):
        return parquet.read_schema(path)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _parquet_errors(path), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{str(path)!r} cannot be read as parquet: {' '.join(str(error).split())[:300]}",
            expected="what its name says, a well-formed parquet file",
            do="write it anew from its source",
        ) from None


def _cached(names: tuple[str, ...], kind: str, content: str, version: int) -> Iterator[dict[str, Any]]:
    """What the cache holds; `content` and `version` are there to be part of the cache's key."""
    rows = _stored(names, kind)
    first = next(rows, None)
    if first is None:
        raise no_rows(names[0])
    yield first
    yield from rows


def _stored(names: tuple[str, ...], kind: str) -> Iterator[dict[str, Any]]:
    for path in map(Path, names):
        if kind == "json":
            yield from ({"json": text} for text in json_texts(path))
        elif kind == "csv":
            yield from csv_rows(path)
        elif kind == "parquet":
            yield from _parquet_rows(path)
        else:
            with open_text(path) as file:
                yield from ({"text": line.removesuffix("\n")} for line in file)


def _plain(names: tuple[str, ...], kind: str) -> Iterator[dict[str, Any]]:
    """The rows themselves, for a stream."""
    stored = _stored(names, kind)
    if kind != "json":
        return stored
    return ({name: values[0] for name, values in decode([row["json"]]).items()} for row in stored)


def _decoded(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    return decode(batch["json"])
