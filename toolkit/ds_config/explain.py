"""Why the rendered configuration holds what it holds, one line per value that a reader may wonder about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.model_size import ModelSize
from toolkit.ds_config.optimizer_block import wants_host_optimizer
from toolkit.ds_config.render import resolved_dtype
from toolkit.ds_config.target import Target
from toolkit.errors import plural
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import mesh_of


def explain(recipe: Recipe, target: Target, config: Mapping[str, Any]) -> list[str]:
    """Sentences about `config`, rendered from `recipe` for `target`: the batch arithmetic and every deviation."""
    accumulation = config["gradient_accumulation_steps"]
    mesh = mesh_of(recipe.parallel, target.world_size)
    micro_batches = plural(accumulation, "micro-batch", "micro-batches")
    replicas = plural(mesh.data, "rank" if mesh.is_plain else "replica")
    lines = [
        f"batch: {recipe.batch.global_size} sequences per step = {recipe.batch.micro_size} per "
        f"{'rank' if mesh.is_plain else 'replica'} x {replicas} x {micro_batches}",
    ]
    if not mesh.is_plain:
        lines.append(f"ranks: {target.world_size} = {mesh.describe()}")
    if mesh.pipeline > 1:
        lines.append(
            f"pipeline: each stage idles {mesh.bubble(accumulation):.0%} of a step, (stages - 1) / (micro-batches + stages - 1); "
            "more micro-batches per step make it less"
        )
    dtype = resolved_dtype(recipe, target)
    emulated = target.bf16 and not target.bf16_is_native
    if recipe.precision.dtype == "auto":
        why = ", which has no instructions for bf16" if emulated else ""
        lines.append(f"precision: auto -> {dtype} on this {target.device} device{why}")
    elif dtype == "bf16" and emulated:
        lines.append(
            f"precision: this {target.device} device has no instructions for bf16: emulated, a step takes longer than in fp32, "
            "on some processors ten times as long; --precision.dtype auto takes fp32 here"
        )
    if config["zero_optimization"]["stage"] != recipe.parallel.zero_stage:
        why = (
            "in a pipeline clips by each stage's own gradient norm"
            if mesh.pipeline > 1
            else f"in {dtype} steps once on zero gradients when it starts"
        )
        lines.append(
            f"ZeRO: stage 0 runs as stage 1, because DeepSpeed's stage 0 {why} and leaves the common loss curve; "
            "the update is the same"
        )
    if wants_host_optimizer(recipe, target) and recipe.parallel.offload_optimizer == "none":
        lines.append("optimizer: lion runs through offload_optimizer, DeepSpeed's only kernel for it on a CPU device")
    exchanged, sums = config["communication_data_type"], config["data_types"]["grad_accum_dtype"]
    if exchanged != sums and recipe.precision.communication_dtype == "auto":
        lines.append(f"gradients: summed over micro-batches in {sums}, exchanged between ranks in {exchanged}")
    if "optimizer" not in config:
        lines.append("optimizer: no block, because DeepSpeed has no Adam with 8-bit states; the toolkit hands it one")
    if not recipe.optimizer.max_grad_norm:
        lines.append("clipping: off (written as 0.0, because DeepSpeed clips at 1.0 where the key is absent)")
    if "scheduler" not in config:
        lines.append(
            f"schedule: {recipe.schedule.type} runs as a torch LambdaLR of the printed curve; DeepSpeed has no exact block for it"
        )
    return lines


def explain_size(recipe: Recipe, config: Mapping[str, Any], model: ModelSize) -> list[str]:
    """What of `config`, rendered for `model`, differs from what the recipe renders to where no model is at hand."""
    zero, parallel = config["zero_optimization"], recipe.parallel
    parts = []
    if zero["stage"] and parallel.reduce_bucket_size is None:
        parts.append(f"buckets of {zero['reduce_bucket_size']:,} elements")
    if zero["stage"] == 3:
        parts.append(f"at most {zero['stage3_max_live_parameters']:,} parameters gathered at a time")
        if parallel.param_persistence_threshold is None:
            parts.append(f"those of fewer than {zero['stage3_param_persistence_threshold']:,} elements always")
    return [f"ZeRO: {', '.join(parts)}, as the largest layer has {model.layer:,}"] if parts else []
