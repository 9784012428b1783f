"""From weights on disk to a DeepSpeed engine: the whole model, or this rank's part of it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from toolkit.checkpoint.durable import write_json
from toolkit.checkpoint.export import UNTRAINED
from toolkit.engine import device, process
from toolkit.engine.base import Training
from toolkit.engine.grid import Grid
from toolkit.engine.pipeline import PipelineEngine
from toolkit.engine.protocol import Engine
from toolkit.engine.sequence import SequenceAttention, check_sequence_attention, use_sequence_attention
from toolkit.engine.tensor import apply_tensor_parallel, mark_parameters
from toolkit.engine.untrained import untrained_tensors
from toolkit.engine.zero import ZeroEngine
from toolkit.models.assets import resolve
from toolkit.models.causality import check_causal, check_positions, foresight, shift
from toolkit.models.contents import compare, settle
from toolkit.models.generation import restore_use_cache, train_shared_padding
from toolkit.models.isolation import check_isolation, leak, use_document_attention
from toolkit.models.loading import check_missing, load_weights, materialise
from toolkit.models.neftune import add_neftune
from toolkit.models.output_layer import output_layer
from toolkit.models.partial import load_part
from toolkit.models.router_balance import balance_excess, check_balance
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.tensor_plan import tensor_plan
from toolkit.models.tiling import check_tiles, tile_mlps
from toolkit.models.weight_files import weight_files
from toolkit.recipe import Recipe
from toolkit.storage import storage_errors
from toolkit.tasks import higher_is_better
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

STARTING_WEIGHTS = ".initial-"
"""How the names of folders with starting weights begin."""

DIGEST_LENGTH = 16
"""Hexadecimal digits with which they end."""


def build_engine(
    recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, folder: RunFolder, display: Display
) -> Engine:
    """Load the weights and hand them to DeepSpeed. Collective."""
    task = inputs.task
    if config["zero_optimization"]["stage"] == 3:
        device.return_freed_memory()
    if recipe.model.weights == "pretrained":
        _settle_contents(inputs, resolve(str(recipe.model.path), weights=True), me, display)
    source = _starting_weights(recipe, inputs, me, folder, display)
    model, missing = _load(recipe, inputs, config, me, source)
    check_missing(missing, source, model)
    _remove_starting_weights(me, folder)
    if recipe.model.weights == "random":
        train_shared_padding(model, inputs.model_config)
    if inputs.generation is not None:
        model.generation_config = GenerationConfig.from_dict(dict(inputs.generation))
    if recipe.model.activation_checkpointing:
        # Non-reentrant: reentrant checkpointing needs inputs that require gradients, which embeddings' do not.
        offload = recipe.model.activation_offload and device.has_own_memory()
        model.activation_checkpointing_enable({"use_reentrant": False}, offload=offload)  # type: ignore[operator]
    tiles = tile_mlps(model, recipe.model.mlp_tiles) if recipe.model.mlp_tiles > 1 else None
    is_first_stage = me.mesh.coordinate(me.rank, "pipeline") == 0
    if recipe.task.neftune_alpha and is_first_stage:
        add_neftune(model, recipe.task.neftune_alpha, me.mesh.sequence)
    task.prepare(model)
    untrained = untrained_tensors(model)
    if me.mesh.pipeline > 1:
        untrained = {name: tensor for stage in process.gather_objects(untrained) for name, tensor in stage.items()}
    if me.is_main:
        _keep_model_files(inputs, recipe, folder, untrained)
    engine = _engine(recipe, inputs, config, me, model)
    if task.auxiliary is not None:
        check_balance(engine.call(balance_excess), type(model).__name__)
    if tiles is not None:
        check_tiles(engine.call(tiles.excess), type(model).__name__)
    if task.is_causal:
        check_causal(engine.call(foresight), inputs.model_config, model)
        if me.mesh.pipeline == 1:
            # Stages are always given positions.
            check_positions(engine.call(shift), model)
    if recipe.data.packing:
        check_isolation(engine.call(leak), type(model).__name__)
        is_sdpa = inputs.model_config._attn_implementation == "sdpa"
        if is_sdpa and device.cuts_documents() and me.mesh.sequence == 1:
            engine.call(use_document_attention)
    return engine


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


def _load(
    recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, source: str
) -> tuple[nn.Module, list[str]]:
    """The model, or this rank's part of it, and the names of weights that `source` does not have."""
    auto_class, stages, degree = inputs.task.auto_class, me.mesh.pipeline, me.mesh.tensor
    if stages == degree == 1:
        return load_weights(auto_class, source, inputs.model_config, config)
    model = build_skeleton(auto_class, inputs.model_config)
    if stages > 1:
        cut(model, balance(model, stages)[me.mesh.coordinate(me.rank, "pipeline")])
    if degree == 1:
        return model, load_part(model, source)
    plan, group = tensor_plan(model, degree), Grid(me.mesh, me.rank).tensor
    apply_tensor_parallel(model, plan, group)
    missing = load_part(model, source, plan.of_rank(me.mesh.coordinate(me.rank, "tensor")))
    mark_parameters(model, plan, group)
    return model, missing


def _engine(recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, model: nn.Module) -> Engine:
    task = inputs.task
    training = Training(
        recipe.optimizer,
        recipe.schedule,
        inputs.total_steps,
        task.loss,
        task.count,
        higher_is_better(recipe.task.name, recipe.evaluation.metric),
        task.auxiliary,
    )
    if me.mesh.pipeline > 1:
        return PipelineEngine(model, config, me, training)
    if me.mesh.sequence == 1:
        return ZeroEngine(model, config, me, training, split=task.split)
    attention = SequenceAttention(model.config, Grid(me.mesh, me.rank).sequence)
    engine = ZeroEngine(model, config, me, training, split=task.split, attention=attention)
    excess = engine.call(use_sequence_attention, attention, recipe.batch.sequence_length)
    check_sequence_attention(excess, type(model).__name__)
    return engine


def _starting_weights(recipe: Recipe, inputs: Inputs, me: process.Process, folder: RunFolder, display: Display) -> str:
    """The checkpoint directory every rank reads its weights from."""
    if recipe.model.weights == "pretrained" and not inputs.task.config_overrides():
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
    is_pretrained = recipe.model.weights == "pretrained"
    files = weight_files(Path(resolve(str(recipe.model.path), weights=True))) if is_pretrained else []
    parts = [
        recipe.model.model_dump(mode="json"),
        inputs.model_config.to_dict(),
        recipe.seed,
        inputs.task.auto_class.__name__,
        [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:DIGEST_LENGTH]


def _keep_model_files(inputs: Inputs, recipe: Recipe, folder: RunFolder, untrained: dict[str, torch.Tensor]) -> None:
    """Write what the export takes over: config, tokenizer, settings of generation, and tensors that stay as they are."""
    config = copy.deepcopy(inputs.model_config)
    restore_use_cache(config, recipe.model.path)
    with storage_errors("writing the model's files", folder.path):
        folder.model.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder.model)
        inputs.tokenizer.save_pretrained(folder.model)
        if untrained:
            save_file(untrained, folder.model / UNTRAINED)
        if inputs.generation is not None:
            write_json(folder.model / GENERATION_CONFIG_NAME, inputs.generation)
