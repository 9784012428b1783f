"""Rows of a data set that is made here: in which split each belongs, and how they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
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


def write(directory: Path, splits: Splits) -> dict[str, int]:
    """Write `directory`/SPLIT.jsonl for each split; returns the number of rows of each."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {name: len(rows) for name, rows in splits.items()}
