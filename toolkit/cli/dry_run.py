"""What --dry_run prints: the resolved recipe, the configuration and why, and the learning-rate curve. No torch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.ds_config.check import check_config
from toolkit.ds_config.explain import explain
from toolkit.ds_config.findings import raise_errors
from toolkit.ds_config.golden import to_json
from toolkit.ds_config.target import Target
from toolkit.errors import plural
from toolkit.processor import multiplies_bf16
from toolkit.recipe import Recipe
from toolkit.recipe.schedules import factor

MOST_ROWS = 60
GPU = Path("/dev/nvidia0")
"""Where it is there, launch.device="auto" may be the GPU: torch decides."""


def target_here(recipe: Recipe, target: Target) -> Target:
    """`target`, assumed for `recipe`, with what this host's processor computes in, where the run would be on it."""
    return replace(target, bf16_is_native=multiplies_bf16()) if _is_for_this_cpu(recipe, target) else target


def _is_for_this_cpu(recipe: Recipe, target: Target) -> bool:
    """Whether a start of `recipe` here would compute on this host's CPU, as far as is known without torch."""
    may_have_gpu = recipe.launch.device == "auto" and GPU.exists()
    return target.device == "cpu" and recipe.launch.hosts == 1 and not may_have_gpu


def print_dry_run(recipe: Recipe, target: Target, config: Mapping[str, Any], name: str) -> None:
    """Print everything about the run that is known before it starts. Raises ConfigError when the check finds something."""
    raise_errors(check_config(config, target=target), f"the configuration of {name}")
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in ("torch", "deepspeed", "transformers")
    )
    print(f"# {name}: {recipe.note}\n# {versions}\n")
    for section, value in recipe.model_dump().items():
        if isinstance(value, dict) and section in type(recipe).model_fields:
            for key, inner in value.items():
                print(f"{section}.{key} = {inner!r}")
        else:
            print(f"{section} = {value!r}")
    print(f"\n# DeepSpeed configuration for {target.world_size} x {target.device}")
    print(to_json(config), end="")
    print()
    for line in explain(recipe, target, config):
        print(f"# {line}")
    if recipe.precision.dtype == "auto" and target.device == "cpu" and not _is_for_this_cpu(recipe, target):
        print("# precision: a CPU without instructions for bf16 takes fp32; the start looks at its own")
    print(
        "# data: the format of the rows is recognised by their columns when they are read; --preview 1 reads and shows some"
    )
    _print_length(recipe)
    _print_curve(recipe)


def _print_length(recipe: Recipe) -> None:
    per_step = recipe.batch.global_size * (recipe.batch.sequence_length if recipe.task.has_length else 1)
    what = f"at most {per_step:,} tokens" if recipe.task.has_length else f"{per_step:,} examples"
    if recipe.steps is None:
        print(f"\n# length: {recipe.epochs:g} epochs, {what} per step; the steps are known once the data is prepared")
    else:
        print(f"\n# length: {plural(recipe.steps, 'step')}, {what} each, {recipe.steps * per_step:,} in all")


def _print_curve(recipe: Recipe) -> None:
    if recipe.steps is None:
        return
    print(f"# learning rate used by each optimizer step ({recipe.schedule.type})")
    if recipe.schedule.type == "reduce_on_plateau":
        print("# (before any drop; drops follow the evaluations)")
    stride = max(1, -(-recipe.steps // MOST_ROWS))
    steps = sorted({*range(1, recipe.steps + 1, stride), recipe.steps})
    for step in steps:
        share = factor(recipe.schedule, step - 1, recipe.steps)
        print(f"step {step:>7}  lr {recipe.optimizer.learning_rate * share:.12g}  {'#' * round(40 * share)}")
