"""From weights on disk to a DeepSpeed engine: the whole model, or this rank's part of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from toolkit.checkpoint.durable import write_json
from toolkit.checkpoint.export import UNTRAINED
from toolkit.engine import device, process
from toolkit.engine.base import Survey, Training
from toolkit.engine.comparison import Comparison
from toolkit.engine.experts import gather_layers_whole
from toolkit.engine.grid import Grid
from toolkit.engine.pipeline import PipelineEngine
from toolkit.engine.protocol import Engine
from toolkit.engine.sequence import SequenceAttention, check_sequence_attention, use_sequence_attention
from toolkit.engine.untrained import describe_frozen, untrained_tensors
from toolkit.engine.zero import ZeroEngine
from toolkit.errors import ModelError
from toolkit.models.activation_offload import ActivationOffload
from toolkit.models.adapters import adapter_config, base_name, task_type
from toolkit.models.attention import set_attention
from toolkit.models.causality import check_causal, check_positions, foresight, shift
from toolkit.models.compile import check_compiler, compile_layers
from toolkit.models.document_choice import (
    implementation,
    kernel_obstacle,
    use_document_attention,
    use_packed_attention,
    use_padded_attention,
)
from toolkit.models.files import ADAPTER_CONFIG
from toolkit.models.generation import restore_use_cache, train_shared_padding
from toolkit.models.isolation import check_isolation, leak
from toolkit.models.kernels import Kernels, check_kernels, choose_kernels
from toolkit.models.neftune import add_neftune
from toolkit.models.router_balance import balance_excess, check_balance
from toolkit.models.tiling import check_tiles, tile_mlps
from toolkit.recipe import Recipe
from toolkit.storage import storage_errors
from toolkit.tasks.base import Task
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder
from toolkit.train.weights import load_model


def build_engine(
    recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, folder: RunFolder, display: Display
) -> Engine:
    """Load the weights and hand them to DeepSpeed. Collective."""
    task = inputs.task
    device.use_tf32(recipe.precision.tf32)
    if config["zero_optimization"]["stage"] == 3:
        device.return_freed_memory()
    if recipe.model.compile:
        check_compiler(device.kind())
    is_fused, said = choose_kernels(recipe, inputs.model_config, device.kind())
    if said:
        display.say(said)
    model, kernels = load_model(recipe, inputs, config, me, display, is_fused=is_fused)
    if recipe.model.is_new:
        train_shared_padding(model, inputs.model_config)
    if inputs.generation is not None:
        model.generation_config = GenerationConfig.from_dict(dict(inputs.generation))
    if recipe.model.activation_checkpointing:
        # Non-reentrant: reentrant checkpointing needs inputs that require gradients, which embeddings' do not.
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if recipe.model.activation_offload and device.has_own_memory():
            ActivationOffload(device.current()).use_in(model)
    tiles = tile_mlps(model, recipe.model.mlp_tiles) if recipe.model.mlp_tiles > 1 else None
    is_first_stage = me.mesh.coordinate(me.rank, "pipeline") == 0
    neftune_alpha = getattr(recipe.task, "neftune_alpha", 0.0)
    if neftune_alpha and is_first_stage:
        add_neftune(model, neftune_alpha, me.mesh.sequence)
    task.prepare(model)
    frozen = describe_frozen(model) if inputs.adapters is None and me.mesh.pipeline == me.mesh.tensor == 1 else None
    if frozen is not None:
        display.say(frozen)
    # Beside adapters everything is as the base checkpoint has it.
    untrained = {} if inputs.adapters is not None else untrained_tensors(model, moves_buffers=task.moves_buffers)
    if me.mesh.pipeline > 1:
        untrained = {name: tensor for stage in process.gather_objects(untrained) for name, tensor in stage.items()}
    if me.is_main:
        _keep_model_files(inputs, recipe, folder, untrained)
    if recipe.model.compile and config["zero_optimization"]["stage"] == 3:
        gather_layers_whole(model)
        if inputs.adapters is not None:
            # A unit whose inputs have no gradient, as the first layer's behind a frozen embedding, is freed when its
            # backward pass begins (parameter_offload.py, _post_backward_module_hook).
            model.enable_input_require_grads()  # type: ignore[operator]
    engine = _engine(recipe, inputs, config, me, model)
    if engine.own_buffers:
        display.say(engine.own_buffers.describe())
    if engine.statistics is not None:
        _check_batch_norm(recipe, engine.statistics.describe(), display)
    if kernels is not None:
        _probe_kernels(recipe, engine, kernels, type(model).__name__, display)
    if getattr(task, "balance", None) is not None:
        check_balance(engine.call(balance_excess), type(model).__name__)
    if tiles is not None:
        check_tiles(engine.call(tiles.excess), type(model).__name__)
    if task.is_causal:
        check_causal(engine.call(foresight), inputs.model_config, model)
        if me.mesh.pipeline == 1:
            # Stages are always given positions.
            check_positions(engine.call(shift), model)
    if task.settles:
        engine.call(task.settle)
    if recipe.data.packing and task.is_causal:
        check_isolation(engine.call(leak), type(model).__name__)
    is_ours = recipe.model.attention in ("auto", "varlen") and inputs.model_config._attn_implementation == "sdpa"
    if recipe.task.has_length and is_ours and me.mesh.sequence == 1:
        _choose_core(recipe, task, engine, type(model).__name__, display)
    if recipe.data.packing and not task.is_causal:
        # No mask of transformers' keeps documents apart where tokens see what comes after them: attention must.
        check_isolation(engine.call(leak), type(model).__name__, attention="auto")
        if me.mesh.pipeline == 1:
            check_positions(engine.call(shift), model, "set data.packing=False for this model")
    if recipe.model.compile:
        # Last: attention is settled, and no probe's short texts are compiled for.
        compile_layers(engine.model)
    return engine


def _check_batch_norm(recipe: Recipe, said: str, display: Display) -> None:
    """Say how batch norms compute. Raises ModelError where they cannot."""
    pipeline, is_compiled = recipe.parallel.pipeline, recipe.model.compile
    if pipeline > 1 or is_compiled:
        raise ModelError(
            f"the model has batch norms, with {f'parallel.pipeline={pipeline}' if pipeline > 1 else 'model.compile=True'}",
            expected="whole models, not compiled: running statistics are summed over the micro-batches of a step",
            do="set parallel.pipeline=1" if pipeline > 1 else "set model.compile=False",
        )
    display.say(said)


def _choose_core(recipe: Recipe, task: Task, engine: Engine, architecture: str, display: Display) -> None:
    """Let attention stay inside each document (or row) without a mask, where that is wanted and gives the same numbers.

    "auto" takes it wherever the kernel computes, and for packed documents everywhere. Collective.
    """
    is_asked_for = recipe.model.attention == "varlen"
    obstacle = engine.call(kernel_obstacle)
    if obstacle is not None and not is_asked_for and not recipe.data.packing:
        # Rows of one document each: a mask of padding is cheaper than a call for each row.
        if device.kind() == "cuda":
            display.say(f"attention: sdpa with a mask of padding; {obstacle}")
        return
    switch = use_document_attention if task.is_causal else use_padded_attention
    if recipe.data.packing and not task.is_causal:
        switch = use_packed_attention
    refused = _agreed(engine, engine.call(switch, implementation(obstacle)))
    if refused is not None and is_asked_for:
        raise ModelError(
            f"model.attention='varlen' does not fit {architecture}: {refused}",
            expected="a model whose tokens meet in attention of transformers' own interface, full or in a sliding window",
            do="set model.attention='auto', which takes 'sdpa' here",
        )
    if refused is not None:
        display.say(f"attention: sdpa with a mask of tokens x tokens; varlen does not fit {architecture}: {refused}")
    elif obstacle is not None and device.kind() == "cuda":
        display.say(f"attention: one document after the other; {obstacle}")


def _agreed(engine: Engine, refused: str | None) -> str | None:
    """The first rank's reason to stay with "sdpa", on all ranks: the last stage of a pipeline may have one of its own."""
    reasons = [reason for reason in process.gather_objects(refused) if reason is not None]
    if reasons and refused is None:
        set_attention(engine.model, "sdpa")
    return reasons[0] if reasons else None


def _probe_kernels(recipe: Recipe, engine: Engine, kernels: Kernels, architecture: str, display: Display) -> None:
    """Compare the kernels with the model's own code; "auto" goes back to that where they differ. Collective."""
    excess = max(process.gather_objects(engine.call(kernels.excess)))
    if recipe.model.kernels == "liger":
        check_kernels(excess, architecture)
    if excess < 1.0:
        found = ", ".join(f"{count} {name}" for name, count in sorted(kernels.replaced.items()))
        display.say(f"kernels: liger ({found})")
        return
    kernels.active = False
    display.say(f"kernels: the model's own (liger's change what {architecture} computes, {excess:.1f} times rounding)")


def _engine(recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, model: nn.Module) -> Engine:
    task = inputs.task
    training = Training(
        recipe.optimizer,
        recipe.schedule,
        inputs.total_steps,
        task.loss,
        task.count,
        task.inputs,
        recipe.task.higher_is_better(recipe.evaluation.metric),
        task.logged,
        task.adds_loss,
        Comparison(task.look, task.compare) if task.compares else None,
        Survey(task.survey, task.surveyed) if task.surveys else None,
        # Beside adapters everything is as the base checkpoint has it.
        recipe.model.batch_norm if inputs.adapters is None else "frozen",
        task.moves_buffers,
    )
    if me.mesh.pipeline > 1:
        return PipelineEngine(model, config, me, training)
    if me.mesh.sequence == 1:
        return ZeroEngine(model, config, me, training, split=task.split)
    task.sequence_group = Grid(me.mesh, me.rank).sequence
    attention = SequenceAttention(model.config, task.sequence_group)
    engine = ZeroEngine(model, config, me, training, split=task.split, attention=attention)
    probed = functools.partial(use_sequence_attention, padded=not task.is_causal)
    excess = engine.call(probed, attention, recipe.batch.sequence_length)
    check_sequence_attention(excess, type(model).__name__)
    return engine


def _keep_model_files(inputs: Inputs, recipe: Recipe, folder: RunFolder, untrained: dict[str, torch.Tensor]) -> None:
    """Write what the export takes over: config, tokenizer, settings of generation, and tensors that stay as they are."""
    config = copy.deepcopy(inputs.model_config)
    restore_use_cache(config, recipe.model.path)
    with storage_errors("writing the model's files", folder.path):
        folder.model.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder.model)
        if inputs.processor is not None:
            inputs.processor.save_pretrained(folder.model)
        if untrained:
            save_file(untrained, folder.model / UNTRAINED)
        (folder.model / ADAPTER_CONFIG).unlink(missing_ok=True)
        if inputs.adapters is not None:
            # After any older one: an adapter is of the base model that the run has now.
            adapter_config(inputs.adapters, base_name(recipe.model), task_type(inputs.task.auto_class)).save_pretrained(
                folder.model
            )
        if inputs.generation is not None:
            write_json(folder.model / GENERATION_CONFIG_NAME, inputs.generation)
        for path, content in inputs.task.files(config, recipe.batch).items():
            (folder.model / path).parent.mkdir(exist_ok=True)
            write_json(folder.model / path, content)
