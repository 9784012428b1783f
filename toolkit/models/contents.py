"""What a checkpoint holds beside what the model has: compared by names and shapes, before any weight is loaded.

The same under every strategy, where transformers' own report depends on how it loads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.files import unreadable
from toolkit.models.quiet import quiet
from toolkit.models.stages import build_skeleton
from toolkit.models.stored_names import Placement, Renaming, files, shapes
from toolkit.models.stored_tensors import open_tensors

CHUNK_ROWS = 4096
"""Of two matrices that are compared."""


@dataclass(frozen=True)
class Contents:
    """The differences. All empty: the checkpoint is the model's."""

    unexpected: list[str]
    """Tensors of the files that no part of the model takes."""
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """Name, shape in the files, shape in the model."""
    untied: list[tuple[str, str]]
    """Pairs of weights that the model ties, and that the files hold with different values."""


def compare(kind: Any, config: PretrainedConfig, source: str, remade: Collection[str] = ()) -> Contents:
    """Compare the weights in directory `source`, in either of transformers' formats, with the model `kind` makes of `config`.

    Weights named in `remade` start anew, so that their shape in the files is of no interest.
    """
    stored = files(Path(source))
    if not stored:
        return Contents([], [], [])
    try:
        with quiet():
            model = build_skeleton(kind, config)
    except Exception as error:
        # Every architecture fails in its own way on what it lacks (a package, a field).
        raise unreadable("model", "model.path", source, source, error) from None
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    renaming = Renaming(model, wanted)
    found: dict[str, Placement] = {}
    unexpected: set[str] = set()
    for name, file in stored.items():
        target, is_converted = renaming(name)
        if target not in wanted:
            unexpected.add(name)
        elif not is_converted:
            found[target] = (file, name)
    mismatched = [
        (name, shape, wanted[name]) for name, shape in shapes(found) if shape != wanted[name] and name not in remade
    ]
    return Contents(_not_ignored(model, unexpected), mismatched, _untied(model, found))


def _not_ignored(model: Any, unexpected: set[str]) -> list[str]:
    """Without what the architecture itself says is of no use (old buffers)."""
    info = SimpleNamespace(missing_keys=set(), unexpected_keys=unexpected)
    model._adjust_missing_and_unexpected_keys(info)
    return sorted(info.unexpected_keys)


def _untied(model: Any, found: Mapping[str, Placement]) -> list[tuple[str, str]]:
    ties: dict[str, str] = model.all_tied_weights_keys
    both = [(one, other) for one, other in ties.items() if one in found and other in found]
    return [(one, other) for one, other in both if not _are_equal(found[one], found[other])]


def _are_equal(one: Placement, other: Placement) -> bool:
    with open_tensors(one[0]) as first, open_tensors(other[0]) as second:
        shape = first.shape(one[1])
        if shape != second.shape(other[1]):
            return False
        left, right = first.part(one[1]), second.part(other[1])
        rows = shape[0] if shape else 0
        starts = range(0, rows, CHUNK_ROWS)
        return all(torch.equal(left[start : start + CHUNK_ROWS], right[start : start + CHUNK_ROWS]) for start in starts)


def settle(kind: Any, config: PretrainedConfig, source: str, contents: Contents) -> list[str]:
    """Make `config` describe the model that transformers makes of the checkpoint; one line for each difference left.

    Raises ModelError where shapes differ, or weights that the architecture always ties.
    """
    if contents.mismatched:
        name, stored, wanted = contents.mismatched[0]
        more = f" (and {len(contents.mismatched) - 1} more)" if len(contents.mismatched) > 1 else ""
        raise ModelError(
            f"{source}: {name} has shape {stored} in the files and {wanted} in the model that its config describes{more}",
            expected="weights of the shapes that config.json gives",
            do="correct config.json or model.config, or take the weights that belong to it",
        )
    lines = []
    if contents.untied:
        _untie(kind, config, source, contents.untied)
        names = " and ".join(contents.untied[0])
        lines.append(
            f"{source} says tie_word_embeddings=true, but holds {names} with different values: "
            "both are trained, untied, as transformers loads them"
        )
    if contents.unexpected:
        others = len(contents.unexpected) - 3
        left = ", ".join(contents.unexpected[:3]) + (f" and {others} more" if others > 0 else "")
        lines.append(f"left out of {source}: {left} (the model has no such weights)")
    return lines


def _untie(kind: Any, config: PretrainedConfig, source: str, pairs: list[tuple[str, str]]) -> None:
    config.tie_word_embeddings = False
    with quiet():
        model: nn.Module = build_skeleton(kind, config)
    ties: dict[str, str] = model.all_tied_weights_keys  # type: ignore[assignment]
    for one, other in pairs:
        if one in ties:
            raise ModelError(
                f"{source} holds {one} and {other} with different values, but {type(model).__name__} has one weight for both",
                expected="one weight, or two equal ones",
                do=f"remove the one that is not meant from the files ({one} or {other})",
            )
