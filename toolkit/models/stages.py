"""Pipeline stages of stock Hugging Face models: the model's own class, holding only its share of the layers.

A stage runs the model's own forward pass. Layers of other stages are stand-ins that pass the hidden states on, so every
index, mask, rotary table and scale stays the model's own, and so does the name of every parameter. What comes before the
stack (embedding, its scaling, learned positions) runs on a later stage too, on the shape alone: the last stand-in
before the stage's own layers throws the result away and puts the received hidden states in its place.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import TORCH_INIT_FUNCTIONS

from toolkit.errors import ModelError
from toolkit.models.absent import Absent, AbsentEmbedding, AbsentLayer, Entry, Exit
from toolkit.models.stage_plan import StagePlan, beside_base, stage_plan
from toolkit.models.ties import base_first


def build_skeleton(auto_class: Any, config: PretrainedConfig) -> nn.Module:
    """The model with parameters on the meta device (fp32, tied where the model ties) and real buffers."""
    with _undrawn(), init_empty_weights(include_buffers=False):
        model: nn.Module = auto_class.from_config(copy.deepcopy(config), dtype=torch.float32)
    base_first(model)
    # On its way to the meta device a parameter becomes a new one: what shared it is tied again.
    model.tie_weights()  # type: ignore[operator]
    return model


@contextmanager
def _undrawn() -> Iterator[None]:
    """Within it, initializers leave tensors on the meta device alone, which have no values.

    transformers runs them all the same (buffers are set there as well), and on the meta device each is Python code: half of
    the time that a model takes to build.
    """

    def unless_meta(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(function)
        def initialize(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return tensor if tensor.is_meta else function(tensor, *args, **kwargs)

        return initialize

    originals = dict(TORCH_INIT_FUNCTIONS)
    wrapped = {name: unless_meta(function) for name, function in originals.items()}
    TORCH_INIT_FUNCTIONS.update(wrapped)
    for name, function in wrapped.items():
        setattr(nn.init, name, function)
    try:
        yield
    finally:
        TORCH_INIT_FUNCTIONS.update(originals)
        for name, function in originals.items():
            setattr(nn.init, name, function)


def cut(model: nn.Module, layers: tuple[int, int]) -> None:
    """Turn a whole model, in place, into the stage that holds `layers` (first, after the last); all others are absent.

    The names of its parameters stay. Every stage is called with all inputs of the model, by keyword, and a later one
    with `inputs_embeds` = what the stage before returned beside them: its layers then see that in the place of the
    tokens, while its head may still look at the tokens (a classifier of decoders looks for padding). The base model of
    every stage but the last returns, as last_hidden_state, the hidden states before the final norm ([B, T, D], or
    [B, T, copies, D] where the architecture keeps several residual streams); the last stage is called like any model.
    Raises ModelError for an architecture that cannot be cut.
    """
    plan = stage_plan(model.config)
    start, stop = layers
    if start in plan.joined or stop in plan.joined:
        raise ValueError(f"layers {start} to {stop} of a model whose layers {sorted(plan.joined)} begin no stage")
    is_first, is_last = start == 0, stop == plan.num_layers
    whereabouts = outside(model, plan)
    ties: dict[str, str] = model.all_tied_weights_keys  # type: ignore[assignment]
    shared = _shared(ties, whereabouts)
    sources = {name.rpartition(".")[0] for name in shared}
    leaving = [] if is_first else [name for name in whereabouts.first if not (is_last and name in sources)]
    leaving += [] if is_last else whereabouts.last
    for name in leaving:
        module = model.get_submodule(name)
        model.set_submodule(name, AbsentEmbedding() if isinstance(module, nn.Embedding) else Absent())
    # transformers ties again whenever it loads; what is not there cannot be.
    model.all_tied_weights_keys = ties if is_last else {}  # type: ignore[assignment]
    model.ties_of_the_whole = ties  # type: ignore[assignment]
    model.shared_with_stages = shared if is_first != is_last else ()  # type: ignore[assignment]
    _cut_layers(model, whereabouts, plan, start, stop)


def base_states(stage: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """What the base model of `stage` hands on; [B, T, D]. Nothing is kept in a cache."""
    base: Any = stage.base_model
    hidden: Tensor = base(**inputs, **without_cache(base)).last_hidden_state
    return hidden


def without_cache(model: nn.Module) -> dict[str, bool]:
    """The argument by which `model` keeps no keys and values, where it could."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def tied_parameters(stage: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that first and last stage both hold: their gradients are to be summed over the two.

    Each bears the one name it has in a checkpoint (model.embed_tokens.weight). Empty on stages between, and in a whole model.
    """
    names: tuple[str, ...] = getattr(stage, "shared_with_stages", ())
    return names


@dataclass(frozen=True)
class Outside:
    """Full names of what the outline of a model names, as far as this model has it."""

    first: list[str]
    layers: str
    last: list[str]
    stack: str
    """The module that owns the layers."""


def outside(model: nn.Module, plan: StagePlan) -> Outside:
    """What of `model` lies before, in and after its layers. Raises ModelError for parameters of which the outline does not say on which stage they belong."""
    names = {id(module): name for name, module in model.named_modules()}
    base, outline = names[id(model.base_model)], plan.outline
    layers = f"{base}.{outline.layers}"
    first = [f"{base}.{name}" for name in outline.first]
    last = [*(f"{base}.{name}" for name in outline.last), *beside_base(model)]
    known = (*first, layers, *last)
    for name, _ in model.named_parameters():
        if not name.startswith(tuple(f"{module}." for module in known)):
            raise ModelError(
                f"{model.config.model_type} cannot be cut into pipeline stages: {name} belongs to no stage",  # type: ignore[union-attr]
                expected=f"parameters in {', '.join(known)}",
                do="set parallel.pipeline=1 and divide the model with parallel.zero_stage=3 or parallel.tensor",
            )
    there = set(names.values())
    return Outside(
        [name for name in first if name in there],
        layers,
        [name for name in last if name in there],
        layers.rpartition(".")[0],
    )


def _shared(ties: dict[str, str], whereabouts: Outside) -> tuple[str, ...]:
    """Weights that the model uses both before and after its layers."""

    def within(name: str, modules: list[str]) -> bool:
        return name.startswith(tuple(f"{module}." for module in modules))

    found = {
        source
        for target, source in ties.items()
        if within(source, whereabouts.first) and within(target, whereabouts.last)
    }
    return tuple(sorted(found))


def _cut_layers(model: nn.Module, whereabouts: Outside, plan: StagePlan, start: int, stop: int) -> None:
    layers: Any = model.get_submodule(whereabouts.layers)
    outputs = plan.outline.layer_outputs
    for index in [*range(start), *range(stop, len(layers))]:
        kind = Entry if index == start - 1 else Exit if index == stop else AbsentLayer
        layers[index] = kind(layers[index], outputs)
    if start > 0:
        # Bound methods, so that a deep copy of the stage has hooks on its own stand-ins.
        base: Any = model.base_model
        base.register_forward_pre_hook(layers[start - 1].receive, with_kwargs=True)
        stack = model.get_submodule(whereabouts.stack)
        if stack is not base and isinstance(stack, PreTrainedModel):
            stack.register_forward_pre_hook(layers[start - 1].receive_inside, with_kwargs=True)
        layers[start].register_forward_pre_hook(layers[start - 1].check, with_kwargs=True)
    if stop < len(layers):
        model.get_submodule(whereabouts.stack).register_forward_hook(layers[stop].hand_over)
