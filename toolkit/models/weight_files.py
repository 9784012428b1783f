"""Which files of a checkpoint directory hold its weights, as transformers chooses. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

FORMS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""(the one file, or the index of several) of each form."""

ORDER = tuple(name for form in FORMS for name in form)
"""The first of these that a directory has is what transformers loads: an index beside a whole file is not read."""


def chosen(folder: Path) -> Path | None:
    """The file of weights, or the index of several, that transformers loads from `folder`; None where it has none."""
    return next((folder / name for name in ORDER if (folder / name).is_file()), None)


def shards(first: Path) -> list[Path]:
    """The files that hold the weights, given what `chosen` found. Raises OSError or ValueError for an index that is none."""
    if first.suffix != ".json":
        return [first]
    found = json.loads(first.read_text(encoding="utf-8"))
    named = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ValueError("it has no weight_map from tensors to files")
    return [first.parent / name for name in sorted(set(named.values()))]


def candidates(folder: Path) -> Iterator[list[str]]:
    """For each form, the names that its weights have or would have, as far as `folder` holds its index."""
    for whole, index in FORMS:
        yield [whole, *(os.path.relpath(file, folder) for file in _listed(folder / index))]


def weight_files(folder: Path) -> list[Path]:
    """The files in `folder` that transformers reads weights from, sorted; none where there are none of a known form."""
    first = chosen(folder)
    return [file for file in _listed(first) if file.is_file()] if first is not None else []


def _listed(first: Path) -> list[Path]:
    """`shards`, and none for a bad index. What is wrong with it is said by who loads the weights (see models/files.py)."""
    try:
        return shards(first)
    except (OSError, ValueError):
        return []
