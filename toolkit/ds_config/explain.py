"""Why the rendered configuration holds what it holds, one line per value that a reader may wonder about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.optimizer_block import wants_host_optimizer
from toolkit.ds_config.target import Target
from toolkit.recipe import Recipe


def explain(recipe: Recipe, target: Target, config: Mapping[str, Any]) -> list[str]:
    """Sentences about `config`, rendered from `recipe` for `target`: the batch arithmetic and every deviation."""
    accumulation = config["gradient_accumulation_steps"]
    lines = [
        f"batch: {recipe.batch.global_size} sequences per step = {recipe.batch.micro_size} per rank x {target.world_size} "
        f"rank{'s' if target.world_size > 1 else ''} x {accumulation} micro-batch{'es' if accumulation > 1 else ''}",
    ]
    dtype = next((name for name in ("bf16", "fp16") if name in config), "fp32")
    if recipe.precision.dtype == "auto":
        lines.append(f"precision: auto -> {dtype} on this {target.device} device")
    if config["zero_optimization"]["stage"] != recipe.parallel.zero_stage:
        lines.append(
            f"ZeRO: stage 0 runs as stage 1, because DeepSpeed's {dtype} stage 0 steps once on zero gradients when it starts "
            "and leaves the common loss curve; the update is the same"
        )
    if wants_host_optimizer(recipe, target) and recipe.parallel.offload_optimizer == "none":
        lines.append("optimizer: lion runs through offload_optimizer, DeepSpeed's only kernel for it on a CPU device")
    if not recipe.optimizer.max_grad_norm:
        lines.append("clipping: off (written as 0.0, because DeepSpeed clips at 1.0 where the key is absent)")
    if "scheduler" not in config:
        lines.append(
            f"schedule: {recipe.schedule.type} runs as a torch LambdaLR of the printed curve; DeepSpeed has no exact block for it"
        )
    return lines
