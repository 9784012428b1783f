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
    """Names of parameters. What is in neither part belongs to the language model."""

    tower: frozenset[str]
    projector: frozenset[str]
    unread: frozenset[str]
    """Those of the tower that lie behind the layer whose output the projector gets: no loss reaches them."""


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
    behind = {id(parameter) for parameter in _behind(model.config, tower)}
    return VisionParts(
        tower=frozenset(name for name, number in found if number in seen - merged),
        unread=frozenset(name for name, number in found if number in behind),
        projector=frozenset(
            name for name, number in found if number in merged or (number not in seen and number not in others)
        ),
    )


def _behind(config: Any, tower: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of `tower` behind the last of its layers that LLaVA and its kin choose, vision_feature_layer."""
    chosen = getattr(config, "vision_feature_layer", None)
    layers = next((module for name, module in tower.named_modules() if name.rpartition(".")[2] == "layers"), None)
    if chosen is None or not isinstance(layers, nn.ModuleList):
        return
    # Output 0 is that of the embeddings.
    count = len(layers)
    last = max(layer % (count + 1) for layer in (chosen if isinstance(chosen, list | tuple) else [chosen]))
    if last == count:
        return
    for layer in list(layers)[last:]:
        yield from layer.parameters()
    for name, module in tower.named_modules():
        if name.rpartition(".")[2] in ("post_layernorm", "head"):
            yield from module.parameters()


def _of(module: nn.Module | None) -> Iterator[nn.Parameter]:
    return iter(()) if module is None else module.parameters()
