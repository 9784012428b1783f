"""Tensors of a checkpoint: where each lies, and which of the model's it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from toolkit.models.stored_tensors import DAMAGE, open_tensors
from toolkit.models.weight_files import weight_files

Placement = tuple[Path, str]
"""A file and the name of a tensor in it."""


def files(directory: Path) -> dict[str, Path]:
    """The file of every tensor of the checkpoint in `directory`; empty where there is none that can be read."""
    found: dict[str, Path] = {}
    try:
        # An index says which files there are; what is in them is what is loaded.
        for file in weight_files(directory):
            with open_tensors(file) as opened:
                found |= dict.fromkeys(opened.names, file)
    except DAMAGE:
        # What is wrong with it is said where transformers reads it.
        return {}
    return found


def shapes(found: Mapping[str, Placement]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor, file by file."""
    for file in sorted({file for file, _ in found.values()}):
        with open_tensors(file) as opened:
            for name, (place, stored) in found.items():
                if place == file:
                    yield name, opened.shape(stored)


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
