"""The tensors in one file of a checkpoint, in either of the formats that transformers loads."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

DAMAGE = (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)
"""What `open_tensors` raises for a file that it cannot read."""


class Tensors:
    """The tensors of one open file. Values are read when a part of them is asked for."""

    def __init__(self, names: list[str], find: Any) -> None:
        self.names = names
        self._find = find

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole shape of the tensor `name`."""
        found = self.part(name)
        return tuple(found.shape if isinstance(found, torch.Tensor) else found.get_shape())

    def part(self, name: str) -> Any:
        """The tensor `name`, to be indexed for the part of it that is wanted."""
        return self._find(name)


@contextmanager
def open_tensors(file: Path) -> Iterator[Tensors]:
    """Open a safetensors file, or one that torch.save wrote. Raises one of DAMAGE for a file that is neither."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            yield Tensors(list(opened.keys()), opened.get_slice)
        return
    # The form before PyTorch 1.6 is no zip archive, and can only be read whole.
    held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(held, Mapping):
        raise ValueError(f"it holds a {type(held).__name__}, not tensors by name")
    tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    yield Tensors(list(tensors), tensors.__getitem__)
