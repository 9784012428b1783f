"""Tensors of a safetensors checkpoint: where each lies, and which of the model's it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

Placement = tuple[Path, str]
"""A file and the name of a tensor in it."""


def files(directory: Path) -> dict[str, Path]:
    """The file of every tensor of a safetensors checkpoint; empty for any other."""
    try:
        index = directory / SAFE_WEIGHTS_INDEX_NAME
        if index.is_file():
            weights = json.loads(index.read_text())["weight_map"]
            return {name: directory / file for name, file in weights.items()}
        file = directory / SAFE_WEIGHTS_NAME
        with safe_open(file, "pt") as opened:
            return dict.fromkeys(opened.keys(), file)
    except (OSError, ValueError, KeyError, SafetensorError):
        # What is wrong with it is said where transformers reads it.
        return {}


def shapes(placements: Mapping[str, Placement]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor, file by file."""
    for file in sorted({file for file, _ in placements.values()}):
        with safe_open(file, "pt") as opened:
            for name, (place, stored) in placements.items():
                if place == file:
                    yield name, tuple(opened.get_slice(stored).get_shape())


class Renaming:
    """The model's name for a stored tensor, by transformers' own rules."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        self._prefix: Any = model.base_model_prefix
        self._names: dict[str, Any] = dict.fromkeys(names, True)

    def __call__(self, stored: str) -> tuple[str, bool]:
        """Its name in the model, and whether its values have to be converted (joined with others, split)."""
        name, converter = rename_source_key(stored, self._renamings, self._converters, self._prefix, self._names)
        if name not in self._names and stored in self._names:
            name, converter = rename_source_key(stored, [], [], self._prefix, self._names)
        return name, converter is not None
