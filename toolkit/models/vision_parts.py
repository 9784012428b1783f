"""The parts of a vision-language model: the tower that sees, the projector behind it, the language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from toolkit.errors import ModelError

MERGERS = ("merger", "merger_list")
"""How modules inside a tower are called, at their ends, that make its outputs as wide as the language model (Qwen2-VL and its kin)."""


@dataclass(frozen=True)
class VisionParts:
    """Names of parameters. What is in neither belongs to the language model."""

    tower: frozenset[str]
    projector: frozenset[str]


def vision_parts(model: Any) -> VisionParts:
    """The parts of `model`, whose weights need not be there. Raises ModelError for one that shows no vision tower."""
    tower, language = model.get_encoder(modality="image"), model.get_decoder()
    bases = (model, model.base_model)
    if tower in bases or language in bases or not isinstance(tower, nn.Module):
        raise ModelError(
            f"{type(model).__name__} does not say which of its parts is the vision tower",
            expected="a vision-language model with a tower and a language model in it",
            do="choose another checkpoint",
        )
    others = {id(parameter) for module in (language, model.get_output_embeddings()) for parameter in _of(module)}
    seen = {id(parameter) for parameter in tower.parameters()}
    merged = {
        id(parameter)
        for name, module in tower.named_modules()
        if name.rpartition(".")[2].endswith(MERGERS)
        for parameter in module.parameters()
    }
    found = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    return VisionParts(
        frozenset(name for name, number in found if number in seen - merged),
        frozenset(name for name, number in found if number in merged or (number not in seen and number not in others)),
    )


def _of(module: nn.Module | None) -> Iterator[nn.Parameter]:
    return iter(()) if module is None else module.parameters()
