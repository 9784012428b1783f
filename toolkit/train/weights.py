"""The weights a run starts from: read from a checkpoint, or drawn, on each rank what it will train."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from toolkit.engine import device, process
from toolkit.engine.grid import Grid
from toolkit.engine.partition import move_buffers, partitioner
from toolkit.engine.tensor import apply_tensor_parallel, mark_parameters
from toolkit.engine.tensor_adapters import cut_adapters
from toolkit.errors import ModelError, first_few
from toolkit.models.adapters import add_adapters, fill_adapters
from toolkit.models.assets import resolve
from toolkit.models.contents import compare, settle
from toolkit.models.fp8 import use_fp8
from toolkit.models.kernels import Kernels, fuse
from toolkit.models.loading import check_missing, load_weights
from toolkit.models.output_layer import is_of_a_head, output_layer
from toolkit.models.partial import Placed, load_part
from toolkit.models.random_weights import RandomWeights, fill
from toolkit.models.shards import Shard
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.tensor_plan import tensor_plan
from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display

Shards = Mapping[str, Shard] | None
"""Of which parameters this rank holds a part only."""


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
    dtype = torch.bfloat16 if "bf16" in config else torch.float16 if "fp16" in config else torch.float32
    if recipe.model.is_new:
        weights = RandomWeights(inputs.task.auto_class, inputs.model_config, recipe.seed, recipe.model.config)
        keep_share = _partitioner(config, me)

        def draw(model: nn.Module, shards: Shards) -> None:
            fill(model, weights, shards=shards, device=device.current(), dtype=dtype, placed=keep_share)

        return _part(recipe, inputs, me, display, draw, keep_share, dtype, is_fused=is_fused)
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
        _use_fp8(recipe, me, model, display)
        kernels = fuse(model) if is_fused else None
        _add_adapters(recipe, inputs, model, _partitioner(config, me), dtype)
        return model, kernels

    keep_share = _partitioner(config, me)

    def read(model: nn.Module, shards: Shards) -> None:
        _read(recipe, inputs, source, head, model, shards, keep_share, dtype, display)

    return _part(recipe, inputs, me, display, read, keep_share, dtype, is_fused=is_fused)


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


def _part(
    recipe: Recipe,
    inputs: Inputs,
    me: process.Process,
    display: Display,
    fill_in: Callable[[nn.Module, Shards], None],
    keep_share: Placed | None,
    dtype: torch.dtype,
    *,
    is_fused: bool,
) -> tuple[nn.Module, Kernels | None]:
    """This rank's part of the model, built without weights and then filled in; all of it where no model is divided."""
    stages, degree = me.mesh.pipeline, me.mesh.tensor
    model = build_skeleton(inputs.task.auto_class, inputs.model_config)
    whole = tensor_plan(model, degree) if degree > 1 else None
    kernels = fuse(model) if is_fused else None
    if stages > 1:
        # Weighed as rank 0 of the tensor group will compute it: every rank of a stage has to cut at the same layers.
        shards = whole.of_rank(0) if whole is not None else None
        cut(model, balance(model, stages, shards)[me.mesh.coordinate(me.rank, "pipeline")])
    # Before anything is cut into parts or wraps a layer's forward pass.
    _use_fp8(recipe, me, model, display)
    if whole is None:
        fill_in(model, None)
        _add_adapters(recipe, inputs, model, keep_share, dtype)
        return model, kernels
    plan, group = whole.within(model), Grid(me.mesh, me.rank).tensor
    edges = apply_tensor_parallel(model, plan, group)
    fill_in(model, plan.of_rank(me.mesh.coordinate(me.rank, "tensor")))
    mark_parameters(model, plan, group)
    _add_adapters(recipe, inputs, model, keep_share, dtype, lambda: cut_adapters(model, plan, edges))
    return model, kernels


def _add_adapters(
    recipe: Recipe,
    inputs: Inputs,
    model: nn.Module,
    keep_share: Placed | None,
    dtype: torch.dtype,
    cut_in_parts: Callable[[], Shards] = lambda: None,
) -> None:
    """Freeze the weights of `model` and build adapters beside them, where that is what is trained."""
    if inputs.adapters is None:
        return
    add_adapters(model, inputs.adapters)
    shards, place = cut_in_parts(), device.current()
    fill_adapters(model, inputs.adapters, recipe.seed, shards=shards, device=place, dtype=dtype, placed=keep_share)


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
