"""Rows of a data set that is made here: in which split each belongs, and how they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

Row = dict[str, Any]
_GROUP = 1000
Splits = Mapping[str, list[Row]]
"""Rows by the name of their split: train and test."""


def share(text: str) -> float:
    """A number from 0 to 1 that depends on `text` alone and is spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def split(rows: Iterable[tuple[str, Row]], held_out: float) -> Splits:
    """`rows` with the key of each: the share `held_out` of all keys is the test split, with all rows of such a key.

    The order within a split is that of a hash of the rows, so that the first few are a sample of all.
    """
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for key, row in sorted(rows, key=lambda pair: share(json.dumps(pair[1], sort_keys=True))):
        splits["test" if share(f"held out {key}") < held_out else "train"].append(row)
    return splits


def holds_bytes(rows: Sequence[Row]) -> bool:
    """Whether `rows` hold images or sound: {"bytes": ..., "path": ...}."""
    return bool(rows) and any(isinstance(value, Mapping) and "bytes" in value for value in rows[0].values())


def write(directory: Path, splits: Splits) -> dict[str, int]:
    """Write `directory`/SPLIT.jsonl for each split, or SPLIT.parquet for rows with bytes; returns the number of rows by file name."""
    directory.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, rows in splits.items():
        name = f"{split}.parquet" if holds_bytes(rows) else f"{split}.jsonl"
        counts[name] = len(rows)
        if holds_bytes(rows):
            # A row group for so many rows that reading one takes little memory.
            parquet.write_table(pyarrow.Table.from_pylist(rows), directory / name, row_group_size=_GROUP)
            continue
        with (directory / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return counts
