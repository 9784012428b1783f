"""Parquet files as Arrow tables. They have types of their own: nothing is guessed, and little is converted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow
from pyarrow import parquet

from toolkit.data.reading.column_names import check_once, check_same
from toolkit.errors import DataError, one_line

BATCH_ROWS = 1000


def parquet_features(paths: Sequence[Path]) -> tuple[datasets.Features, list[str]]:
    """The columns of `paths` together, and the names of those left out: of a type that no row of datasets can have.

    Raises DataError for columns that differ between the files, and where no column is left.
    """
    schemas = [_schema(path) for path in paths]
    check_same(paths, [sorted(schema.names) for schema in schemas])
    schema = _one_schema(paths, schemas)
    unread = [field.name for field in schema if not _is_readable(field.type)]
    kept = pyarrow.schema([field for field in schema if field.name not in unread], metadata=schema.metadata)
    if not kept.names:
        types = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none at all"
        raise DataError(
            f"{str(paths[0])!r} has no column of a type that can be read: {types}",
            expected="columns of text, numbers, lists and structs",
            do="write the columns with another type, a map as a list of structs for instance",
        )
    try:
        return datasets.Features.from_arrow_schema(kept), unread
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(paths[0])!r} describes its columns in a way that datasets cannot read: {one_line(error)}",
            expected="what datasets writes under 'huggingface' in the file's metadata, or nothing there",
            do="write the file anew from its source",
        ) from None


def parquet_tables(path: Path, names: Sequence[str]) -> Iterator[pyarrow.Table]:
    """The columns `names` of `path`, in pieces of at most BATCH_ROWS rows. Raises DataError for a damaged file, and for
    text that is none."""
    read = 0
    with _errors(path), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            table = _decoded(pyarrow.Table.from_batches([batch]).select(list(names)))
            _check_text(table, path, read)
            read += len(table)
            yield table


def _check_text(table: pyarrow.Table, path: Path, rows_before: int) -> None:
    """Raise DataError for bytes in a column of text that are not UTF-8; writers in other languages do not look."""
    for name in table.column_names:
        if _is_valid(column := table.column(name)):
            continue
        place = next(place for place in range(len(column)) if not _is_valid(column.slice(place, 1)))
        raise DataError(
            f"{str(path)!r}, row {rows_before + place + 1:,} has bytes in the column {name!r} that are not UTF-8 text",
            expected="UTF-8 in columns of text",
            do="write the file anew from its source, with the text decoded",
        )


def _is_valid(column: pyarrow.ChunkedArray) -> bool:
    try:
        column.combine_chunks().validate(full=True)
    except pyarrow.ArrowInvalid:
        return False
    return True


def _schema(path: Path) -> pyarrow.Schema:
    with _errors(path):
        schema = parquet.read_schema(path)
        check_once(path, schema.names)
        return _decoded(schema.empty_table()).schema


def _decoded(table: pyarrow.Table) -> pyarrow.Table:
    """`table` with the values themselves where it holds their numbers in a dictionary, as pandas writes categories."""
    for number, field in enumerate(table.schema):
        if pyarrow.types.is_dictionary(field.type):
            column = table.column(number).cast(field.type.value_type)
            table = table.set_column(number, field.name, column)
    return table


def _is_readable(kind: pyarrow.DataType) -> bool:
    try:
        datasets.Features.from_arrow_schema(pyarrow.schema([pyarrow.field("x", kind)]))
    except (ValueError, NotImplementedError, TypeError):
        return False
    return True


def _one_schema(paths: Sequence[Path], schemas: Sequence[pyarrow.Schema]) -> pyarrow.Schema:
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            f"the columns of {str(paths[0])!r} and the {len(paths) - 1:,} files beside it differ in type: {error}",
            expected="the same type of a column in all files of one source",
            do="read the files apart, or write them with the same types",
        ) from None


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{str(path)!r} cannot be read as parquet: {one_line(error)}",
            expected="what its name says, a well-formed parquet file",
            do="write it anew from its source",
        ) from None
