"""Which layers of a deep model a trace has to see, so that what it finds can be carried over to all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

SEEN = 2
"""Layers of a kind that the shallowest trace has; what one more adds is what each of the others adds."""

Layer = tuple[str, str]
"""The name of a stack, and of a layer in it."""


@dataclass(frozen=True)
class Depths:
    """The layers of a model by kind."""

    kinds: Mapping[Any, tuple[Layer, ...]]
    """Kind -> its layers, in the order of the model."""

    @property
    def repeated(self) -> list[Any]:
        """The kinds that have more layers than the shallowest trace sees."""
        return [kind for kind, layers in self.kinds.items() if len(layers) > SEEN]

    def kept(self, one_more: Any = None) -> set[Layer]:
        """The layers of the shallowest trace, the first and the last of each kind, with one more of the kind `one_more`."""
        kept = {layer for layers in self.kinds.values() for layer in (layers[0], layers[-1])}
        return kept if one_more is None else {*kept, self.kinds[one_more][1]}


def depths_of(model: nn.Module) -> Depths:
    """The stacks of `model`, a skeleton: lists of transformers' layers, told apart by class, shapes and kind of attention."""
    kinds: dict[Any, list[Layer]] = {}
    for name, stack in _stacks(model):
        for index, layer in stack.named_children() if len(stack) > SEEN else ():
            kinds.setdefault((name, _kind(layer)), []).append((name, index))
    return Depths({kind: tuple(layers) for kind, layers in kinds.items()})


def layers_by_parameter(model: nn.Module) -> dict[int, Layer]:
    """The layers of all stacks of `model`, by the `id` of each of their parameters that are trained."""
    return {
        id(parameter): (name, index)
        for name, stack in _stacks(model)
        for index, layer in stack.named_children()
        for parameter in layer.parameters()
        if parameter.requires_grad
    }


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, stack in model.named_modules():
        if not isinstance(stack, nn.ModuleList) or not len(stack):
            continue
        if all(isinstance(layer, GradientCheckpointingLayer) for layer in stack):
            yield name, stack


def thinned(model: nn.Module, kept: set[Layer]) -> nn.Module:
    """A copy of `model` with no layers in its stacks but `kept`, which keep their names."""
    gone = {
        (stack, index): layer
        for stack in {stack for stack, _ in kept}
        for index, layer in model.get_submodule(stack).named_children()
        if (stack, index) not in kept
    }
    # The layers that go are not copied: most of a deep model.
    copied: nn.Module = copy.deepcopy(model, {id(layer): layer for layer in gone.values()})
    for stack, index in gone:
        del copied.get_submodule(stack)._modules[index]
    return copied


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
    return type(layer).__name__, shapes, tuple(_attention_kinds(layer))


def _attention_kinds(layer: nn.Module) -> Iterator[Any]:
    for module in layer.modules():
        for name in (
            "sliding_window",
            "layer_type",
            "attention_type",
            "is_sliding",
            "is_local",
            "has_relative_attention_bias",
        ):
            value = getattr(module, name, None)
            if isinstance(value, int | str | bool):
                yield name, value
