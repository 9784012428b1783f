"""Which files of a checkpoint directory hold its weights. Imports neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

FORMS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""(the one file, or the index of several) of each form, in the order in which transformers looks for them."""


def candidates(folder: Path) -> Iterator[list[str]]:
    """For each form, the names that its weights have or would have, as far as `folder` holds its index."""
    for whole, index in FORMS:
        yield [whole, *_listed(folder / index)]


def weight_files(folder: Path) -> list[Path]:
    """The files in `folder` that transformers reads weights from, sorted; none where there are none of a known form."""
    for names in candidates(folder):
        found = sorted(folder / name for name in names if (folder / name).is_file())
        if found:
            return found
    return []


def _listed(index: Path) -> set[str]:
    """The files that `index` names. What is wrong with it is said by who loads the weights (see models/files.py)."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
