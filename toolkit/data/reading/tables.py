"""Files of every kind that is read, as Arrow tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from toolkit.data.reading.csv_rows import csv_rows
from toolkit.data.reading.idx_rows import idx_tables
from toolkit.data.reading.json_rows import json_texts
from toolkit.data.reading.parquet_rows import BATCH_ROWS, parquet_tables
from toolkit.data.reading.text_files import open_lines


def tables(name: str, kind: str, columns: Sequence[str]) -> Iterator[pyarrow.Table]:
    """The rows of the file `name` in pieces of at most BATCH_ROWS; of `kind` json it is their text, in the column json."""
    path = Path(name)
    if kind == "parquet":
        yield from parquet_tables(path, columns)
        return
    if kind == "idx":
        yield from idx_tables(path, BATCH_ROWS)
        return
    found = _text_rows(path, kind)
    while rows := list(itertools.islice(found, BATCH_ROWS)):
        values = zip(*rows, strict=True) if kind == "csv" else [rows]
        arrays = [pyarrow.array(column, pyarrow.large_string()) for column in values]
        yield pyarrow.Table.from_arrays(arrays, names=list(columns))


def _text_rows(path: Path, kind: str) -> Iterator[Any]:
    if kind == "csv":
        yield from csv_rows(path)
    elif kind == "json":
        yield from json_texts(path)
    else:
        with open_lines(path) as file:
            yield from (line.removesuffix("\n") for line in file)
