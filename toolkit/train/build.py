"""From weights on disk to a DeepSpeed engine: the whole model, or this rank's part of it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig

from toolkit.checkpoint.durable import storage_errors
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
from toolkit.errors import ModelError
from toolkit.models.assets import resolve
from toolkit.models.isolation import check_isolation, leak, use_document_attention
from toolkit.models.loading import load_weights, materialise
from toolkit.models.neftune import add_neftune
from toolkit.models.partial import load_part
from toolkit.models.router_balance import balance_excess, check_balance
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.tensor_plan import tensor_plan
from toolkit.models.tiling import check_tiles, tile_mlps
from toolkit.recipe import Recipe
from toolkit.tasks import higher_is_better
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder


def build_engine(
    recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, folder: RunFolder, display: Display
) -> Engine:
    """Load the weights and hand them to DeepSpeed. Collective."""
    task = inputs.task
    source = _starting_weights(recipe, inputs, me, folder, display)
    model, missing = _load(recipe, inputs, config, me, source)
    if missing:
        raise ModelError(
            f"{source} has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            expected=f"a checkpoint of the whole {type(model).__name__}",
            do="give a checkpoint with these weights, or train from scratch with model.weights='random'",
        )
    if recipe.model.activation_checkpointing:
        # Non-reentrant: reentrant checkpointing needs inputs that require gradients, which embeddings' do not.
        offload = recipe.model.activation_offload and device.has_own_memory()
        model.gradient_checkpointing_enable({"use_reentrant": False}, offload=offload)  # type: ignore[operator]
    tiles = tile_mlps(model, recipe.model.mlp_tiles) if recipe.model.mlp_tiles > 1 else None
    is_first_stage = me.mesh.coordinate(me.rank, "pipeline") == 0
    if recipe.task.neftune_alpha and is_first_stage:
        add_neftune(model, recipe.task.neftune_alpha)
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
    if recipe.data.packing:
        check_isolation(engine.call(leak), type(model).__name__)
        if recipe.model.attention == "sdpa" and device.cuts_documents() and me.mesh.sequence == 1:
            engine.call(use_document_attention)
    return engine


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
    attention = SequenceAttention(model.config, recipe.model.attention, Grid(me.mesh, me.rank).sequence)
    engine = ZeroEngine(model, config, me, training, split=task.split, attention=attention)
    excess = engine.call(use_sequence_attention, attention, recipe.batch.sequence_length)
    check_sequence_attention(excess, type(model).__name__)
    return engine


def _starting_weights(recipe: Recipe, inputs: Inputs, me: process.Process, folder: RunFolder, display: Display) -> str:
    """The checkpoint directory every rank reads its weights from."""
    if recipe.model.weights == "pretrained" and not inputs.task.config_overrides():
        return resolve(str(recipe.model.path))
    # One per host: hosts may not share a file system, and the same seed gives the same weights on each.
    directory = folder.path / f".initial-{socket.gethostname()}"
    if me.local_rank == 0 and not (directory / "config.json").is_file():
        temporary = directory.with_name(f"{directory.name}.writing")
        shutil.rmtree(temporary, ignore_errors=True)
        with storage_errors("writing the starting weights", folder.path):
            fresh = materialise(inputs.task.auto_class, recipe.model, inputs.model_config, temporary, recipe.seed)
            temporary.rename(directory)
        if fresh:
            display.say(f"new weights: {', '.join(fresh)}")
    process.barrier()
    return str(directory)


def _keep_model_files(inputs: Inputs, recipe: Recipe, folder: RunFolder, untrained: dict[str, torch.Tensor]) -> None:
    source = resolve(recipe.model.path) if recipe.model.path else None
    with storage_errors("writing the model's files", folder.path):
        folder.model.mkdir(parents=True, exist_ok=True)
        inputs.model_config.save_pretrained(folder.model)
        inputs.tokenizer.save_pretrained(folder.model)
        if untrained:
            save_file(untrained, folder.model / UNTRAINED)
        if source and (Path(source) / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(source).save_pretrained(folder.model)
