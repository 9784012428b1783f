"""The weights a run starts from: read from a checkpoint, or drawn, on each rank what it will train."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from toolkit.engine import device, process
from toolkit.engine.part import Part, Shards, build_part
from toolkit.engine.partition import move_buffers, partitioner
from toolkit.errors import ModelError, first_few
from toolkit.models.adapters import add_adapters, fill_adapters
from toolkit.models.assets import resolve
from toolkit.models.contents import compare, settle
from toolkit.models.dtypes import dtype_of
from toolkit.models.fp8 import use_fp8
from toolkit.models.kernels import Kernels, fuse
from toolkit.models.loading import check_missing, load_weights
from toolkit.models.output_layer import is_of_a_head, output_layer
from toolkit.models.partial import Placed, load_part
from toolkit.models.random_weights import RandomWeights, fill
from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display


def load_model(
    recipe: Recipe,
    inputs: Inputs,
    config: Mapping[str, Any],
    me: process.Process,
    display: Display,
    *,
    is_fused: bool,
) -> tuple[nn.Module, Kernels | None]:
    """The model, or this rank's part of it, with its starting weights, and with fused kernels if `is_fused`. Collective."""
    # DeepSpeed rounds the weights to it before it makes its masters of them: fp32 on the way there would change nothing.
    dtype = dtype_of(config)
    part = Part(inputs.task.auto_class, inputs.model_config, inputs.adapters, me.mesh, me.rank)
    keep_share = _partitioner(config, me)

    def fill_beside(model: nn.Module, shards: Shards) -> None:
        assert inputs.adapters is not None, "nobody else asks"
        place = device.current()
        fill_adapters(model, inputs.adapters, recipe.seed, shards=shards, device=place, dtype=dtype, placed=keep_share)

    def use_fp8_layers(model: nn.Module) -> None:
        _use_fp8(recipe, me, model, display)

    if recipe.model.is_new:
        weights = RandomWeights(inputs.task.auto_class, inputs.model_config, recipe.seed, recipe.model.config)

        def draw(model: nn.Module, shards: Shards) -> None:
            fill(model, weights, shards=shards, device=device.current(), dtype=dtype, placed=keep_share)

        return build_part(part, draw, fill_beside, is_fused=is_fused, before_cut=use_fp8_layers)
    source = resolve(str(recipe.model.path), weights=True)
    # A new head replaces the checkpoint's, whatever its shape.
    head = output_layer(inputs.task.auto_class, inputs.model_config) if inputs.task.new_head else []
    _settle_contents(inputs, source, head, me, display)
    # In fp32 on a CPU transformers maps the file and copies nothing; at stage 3 it keeps a share of each parameter.
    is_easy = config["zero_optimization"]["stage"] == 3 or (dtype == torch.float32 and not device.has_own_memory())
    is_theirs = not (_may_lack_head(inputs) or inputs.task.loads_by_part)
    if is_easy and is_theirs and me.mesh.pipeline == me.mesh.tensor == 1:
        model, missing = load_weights(inputs.task.auto_class, source, inputs.model_config, config)
        check_missing(missing, source, model)
        use_fp8_layers(model)
        kernels = fuse(model) if is_fused else None
        if inputs.adapters is not None:
            add_adapters(model, inputs.adapters)
            fill_beside(model, None)
        return model, kernels

    def read(model: nn.Module, shards: Shards) -> None:
        _read(recipe, inputs, source, head, model, shards, keep_share, dtype, display)

    return build_part(part, read, fill_beside, is_fused=is_fused, before_cut=use_fp8_layers)


def _may_lack_head(inputs: Inputs) -> bool:
    return inputs.task.may_lack_head or bool(inputs.task.config_overrides())


def _partitioner(config: Mapping[str, Any], me: process.Process) -> Placed | None:
    # With tensor parallelism only some of the ranks share a parameter: DeepSpeed is told which when it gets the model.
    return partitioner(config) if me.mesh.tensor == 1 else None


def _read(
    recipe: Recipe,
    inputs: Inputs,
    source: str,
    head: list[str],
    model: nn.Module,
    shards: Shards,
    keep_share: Placed | None,
    dtype: torch.dtype,
    display: Display,
) -> None:
    """Fill `model` from the checkpoint `source`, and draw what a classifier's head needs beyond it, the same on every topology."""
    kind, config, place = inputs.task.auto_class, inputs.model_config, device.current()
    missing = load_part(model, source, shards, remade=head, device=place, dtype=dtype, placed=keep_share)
    may_lack = _may_lack_head(inputs)
    check_missing([name for name in missing if not (may_lack and is_of_a_head(model, name))], source, model)
    if missing:
        _check_trained(missing, inputs, source)
        weights = RandomWeights(kind, config, recipe.seed, recipe.model.config)
        fill(model, weights, missing, device=place, dtype=dtype, placed=keep_share)
        display.say(f"new weights: {', '.join(missing)}")
    if keep_share is not None:
        move_buffers(model)


def _check_trained(missing: Collection[str], inputs: Inputs, source: str) -> None:
    """Raise ModelError for drawn weights that adapters would leave as they were drawn."""
    frozen = [] if inputs.adapters is None else sorted({*missing} - {*inputs.adapters.whole})
    if frozen:
        raise ModelError(
            f"the checkpoint at {source!r} has no {first_few(frozen, 4)}, and tuning=LoRA(...) does not train it",
            expected="a checkpoint with the head of this task, or a tuning that trains a new one",
            do="set tuning=Full(), or choose a checkpoint that was trained for this task",
        )


def _settle_contents(inputs: Inputs, source: str, head: list[str], me: process.Process, display: Display) -> None:
    """Say what the checkpoint holds and the model does not, and make the config that of the model transformers loads.

    Collective: rank 0 looks.
    """
    kind, config = inputs.task.auto_class, inputs.model_config
    found = process.agree(lambda: compare(kind, config, source, head) if me.is_main else None)
    contents = process.gather_objects(found)[0]
    for line in process.agree(lambda: settle(kind, config, source, contents)):
        display.say(line)


def _use_fp8(recipe: Recipe, me: process.Process, model: nn.Module, display: Display) -> None:
    if recipe.precision.dtype == "fp8":
        # A device without fp8 gets here in the tests only: `render` refuses it.
        found = use_fp8(model, emulate=not device.has_own_memory(), tensor=me.mesh.tensor)
        display.say(found.describe())
