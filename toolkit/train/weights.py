"""The weights a run starts from: read from a checkpoint, or drawn, on each rank what it will train.

Only a checkpoint that gets a new head goes over the disk: rank 0 of each host writes it once, and every rank reads it
like any other, so that the starting point does not depend on how the ranks are arranged.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.engine import device, process
from toolkit.engine.grid import Grid
from toolkit.engine.partition import partitioner
from toolkit.engine.tensor import apply_tensor_parallel, mark_parameters
from toolkit.models.assets import resolve
from toolkit.models.contents import compare, settle
from toolkit.models.fp8 import use_fp8
from toolkit.models.kernels import Kernels, fuse
from toolkit.models.loading import check_missing, load_weights, materialise
from toolkit.models.output_layer import output_layer
from toolkit.models.partial import load_part
from toolkit.models.random_weights import RandomWeights, fill
from toolkit.models.shards import Shard
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.tensor_plan import tensor_plan
from toolkit.models.weight_files import weight_files
from toolkit.recipe import Recipe
from toolkit.storage import storage_errors
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

Shards = Mapping[str, Shard] | None
"""Of which parameters this rank holds a part only."""

STARTING_WEIGHTS = ".initial-"
"""How the names of folders with starting weights begin."""

DIGEST_LENGTH = 16
"""Hexadecimal digits with which they end."""


def load_model(
    recipe: Recipe,
    inputs: Inputs,
    config: Mapping[str, Any],
    me: process.Process,
    folder: RunFolder,
    display: Display,
    *,
    is_fused: bool,
) -> tuple[nn.Module, Kernels | None]:
    """The model, or this rank's part of it, with its starting weights, and with fused kernels if `is_fused`. Collective."""
    # DeepSpeed rounds the weights to it before it makes its masters of them: fp32 on the way there would change nothing.
    dtype = torch.bfloat16 if "bf16" in config else torch.float16 if "fp16" in config else torch.float32
    if recipe.model.weights == "random":
        weights = RandomWeights(inputs.task.auto_class, inputs.model_config, recipe.seed, recipe.model.config)
        keep_share = partitioner(config)

        def draw(model: nn.Module, shards: Shards) -> None:
            fill(model, weights, shards=shards, device=device.current(), dtype=dtype, placed=keep_share)

        return _part(recipe, inputs, me, display, draw, is_fused=is_fused)
    _settle_contents(inputs, resolve(str(recipe.model.path), weights=True), me, display)
    source = _source(recipe, inputs, me, folder, display)

    def read(model: nn.Module, shards: Shards) -> None:
        check_missing(load_part(model, source, shards, device=device.current(), dtype=dtype), source, model)

    # In fp32 on a CPU transformers maps the file and copies nothing; at stage 3 it keeps a share of each parameter.
    is_mapped = dtype == torch.float32 and not device.has_own_memory()
    if me.mesh.pipeline == me.mesh.tensor == 1 and (is_mapped or config["zero_optimization"]["stage"] == 3):
        model, missing = load_weights(inputs.task.auto_class, source, inputs.model_config, config)
        check_missing(missing, source, model)
        _use_fp8(recipe, me, model, display)
        found = model, fuse(model) if is_fused else None
    else:
        found = _part(recipe, inputs, me, display, read, is_fused=is_fused)
    _remove_starting_weights(me, folder)
    return found


def _part(
    recipe: Recipe,
    inputs: Inputs,
    me: process.Process,
    display: Display,
    fill_in: Callable[[nn.Module, Shards], None],
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
        return model, kernels
    plan, group = whole.within(model), Grid(me.mesh, me.rank).tensor
    apply_tensor_parallel(model, plan, group)
    fill_in(model, plan.of_rank(me.mesh.coordinate(me.rank, "tensor")))
    mark_parameters(model, plan, group)
    return model, kernels


def _settle_contents(inputs: Inputs, source: str, me: process.Process, display: Display) -> None:
    """Say what the checkpoint holds and the model does not, and make the config that of the model transformers loads.

    Collective: rank 0 looks.
    """
    kind, config = inputs.task.auto_class, inputs.model_config
    # A new head replaces the checkpoint's, whatever its shape.
    remade = output_layer(kind, config) if inputs.task.new_head else []
    found = process.agree(lambda: compare(kind, config, source, remade) if me.is_main else None)
    contents = process.gather_objects(found)[0]
    for line in process.agree(lambda: settle(kind, config, source, contents)):
        display.say(line)


def _use_fp8(recipe: Recipe, me: process.Process, model: nn.Module, display: Display) -> None:
    if recipe.precision.dtype == "fp8":
        # A device without fp8 gets here in the tests only: `render` refuses it.
        found = use_fp8(model, emulate=not device.has_own_memory(), tensor=me.mesh.tensor)
        display.say(found.describe())


def _source(recipe: Recipe, inputs: Inputs, me: process.Process, folder: RunFolder, display: Display) -> str:
    """The checkpoint directory every rank reads its weights from."""
    if not inputs.task.config_overrides():
        return resolve(str(recipe.model.path), weights=True)
    # One per host: hosts may not share a file system, and the same seed gives the same weights on each. Its name says what
    # the weights are made from: a start that failed may have left others.
    host = socket.gethostname()
    directory = folder.path / f"{STARTING_WEIGHTS}{host}-{_digest(recipe, inputs)}"
    if me.local_rank == 0 and not (directory / "config.json").is_file():
        for stale in starting_weights_of(host, folder.path):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = directory.with_name(f"{directory.name}.writing")
        with storage_errors("writing the starting weights", folder.path):
            fresh = materialise(
                inputs.task.auto_class,
                recipe.model,
                inputs.model_config,
                temporary,
                recipe.seed,
                new_head=inputs.task.new_head,
            )
            temporary.rename(directory)
        if fresh:
            display.say(f"new weights: {', '.join(fresh)}")
    process.barrier()
    return str(directory)


def _remove_starting_weights(me: process.Process, folder: RunFolder) -> None:
    """Once every rank has read them: a resume makes the same ones again, for what no checkpoint holds."""
    process.barrier()
    if me.local_rank == 0:
        for directory in starting_weights_of(socket.gethostname(), folder.path):
            shutil.rmtree(directory, ignore_errors=True)


def starting_weights_of(host: str, folder: Path) -> list[Path]:
    """The folders with starting weights that `host` has left in `folder`; another host's name may begin with this one's."""
    name = re.compile(rf"{re.escape(STARTING_WEIGHTS + host)}-[0-9a-f]{{{DIGEST_LENGTH}}}(\.writing)?")
    return [path for path in folder.glob(f"{STARTING_WEIGHTS}*") if name.fullmatch(path.name)]


def _digest(recipe: Recipe, inputs: Inputs) -> str:
    """What decides the starting weights, in DIGEST_LENGTH characters: model, its config, seed, and the files they come from."""
    files = weight_files(Path(resolve(str(recipe.model.path), weights=True)))
    parts = [
        recipe.model.model_dump(mode="json"),
        inputs.model_config.to_dict(),
        recipe.seed,
        inputs.task.auto_class.__name__,
        [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:DIGEST_LENGTH]
