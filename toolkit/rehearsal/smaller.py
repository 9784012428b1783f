"""The recipe of a rehearsal: the user's, so small that CPU ranks of one host train it in seconds. Imports no torch.

Each kind of parallelism, ZeRO stage, offload and format stays; what cannot is listed, to be said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import plural
from toolkit.recipe import Batch, Checkpoint, LoRA, Recipe, Tracking
from toolkit.recipe.effect import has_held_out, watches
from toolkit.recipe.mesh import DEGREES, Mesh, mesh_of

MOST_RANKS = 4
SAVED_STEP = 2
STEPS = SAVED_STEP + 1
"""Up to the checkpoint that is resumed from, and one more to compare."""
MOST_MICRO, MOST_ACCUMULATED = 2, 2
HELD_OUT = 4
"""Held-out sequences that are evaluated."""
GENERATED = 4
"""Longest generated text, in tokens."""
LARGEST_RANK = 8
"""Of adapters: the matrices of a small model have few rows."""
PERSISTENT = 100
"""Elements up to which ZeRO-3 leaves a parameter whole, where the recipe says a number: those of a small model are few."""


@dataclass(frozen=True)
class Smaller:
    """A recipe for a few CPU ranks."""

    recipe: Recipe
    """Model and data are still the user's."""
    mesh: Mesh
    """The ranks of the rehearsal."""
    full: Mesh
    """Those of the recipe's own run."""
    not_shown: list[str] = field(default_factory=list)
    """What of the recipe a rehearsal leaves out."""


def smaller(recipe: Recipe, world_size: int) -> Smaller:
    """`recipe`, meant for `world_size` ranks, with few steps, small batches and at most MOST_RANKS ranks on CPUs."""
    full = mesh_of(recipe.parallel, world_size)
    mesh = small_mesh(full)
    missing: list[str] = []
    changes = {
        "model": _model(recipe, missing),
        "data": _data(recipe),
        "task": recipe.task.model_copy(update=_generation(recipe)),
        "tuning": _tuning(recipe),
        "batch": _batch(recipe, full, mesh),
        "optimizer": _optimizer(recipe, missing),
        "schedule": recipe.schedule.model_copy(update=_schedule(recipe)),
        "precision": recipe.precision.model_copy(update=_precision(recipe, missing)),
        "parallel": _parallel(recipe, mesh),
        "evaluation": recipe.evaluation.model_copy(update=_evaluation(recipe)),
        "checkpoint": _checkpoint(recipe),
        "tracking": Tracking(tensorboard=False),
        "launch": recipe.launch.model_copy(update={"devices": mesh.world_size, "hosts": 1, "device": "cpu"}),
    }
    missing += _left_out(recipe, full, mesh)
    made = Recipe(**{**dict(recipe), **changes, "steps": STEPS, "epochs": None})
    return Smaller(made, mesh, full, missing)


def small_mesh(full: Mesh) -> Mesh:
    """At most MOST_RANKS ranks with each kind of parallelism that `full` has at degree 2, data parallelism where there is room."""
    degrees = {name: min(2, full.size(name)) for name in DEGREES}
    inside = Mesh(**degrees).world_size
    return Mesh(**degrees, data=max(1, min(2, full.data, MOST_RANKS // inside)))


def _model(recipe: Recipe, missing: list[str]) -> Any:
    model = recipe.model
    changes: dict[str, Any] = {}
    if model.attention.startswith("flash"):
        changes["attention"] = "auto"
        missing.append(f"model.attention={model.attention!r} (CUDA)")
    if model.kernels == "liger":
        changes["kernels"] = "auto"
        missing.append("model.kernels='liger' (CUDA)")
    if model.compile:
        changes["compile"] = False
        missing.append("model.compile (minutes of compiling)")
    if model.activation_offload:
        missing.append("model.activation_offload (a CPU has one memory)")
    return model.model_copy(update=changes)


def _data(recipe: Recipe) -> Any:
    few = min(HELD_OUT, recipe.data.evaluation_examples)
    return recipe.data.model_copy(update={"max_examples": None, "evaluation_examples": few})


def _generation(recipe: Recipe) -> dict[str, Any]:
    """Short answers: how long they are proves nothing."""
    task = recipe.task
    lengths = {name: getattr(task, name, None) for name in ("max_new_tokens", "sample_tokens")}
    generates = {"max_new_tokens": getattr(task, "scores", ()), "sample_tokens": getattr(task, "sample_prompt", None)}
    return {name: min(GENERATED, length or GENERATED) for name, length in lengths.items() if generates[name]}


def _tuning(recipe: Recipe) -> Any:
    tuning = recipe.tuning
    if not isinstance(tuning, LoRA):
        return tuning
    return tuning.model_copy(update={"rank": min(tuning.rank, LARGEST_RANK)})


def _batch(recipe: Recipe, full: Mesh, mesh: Mesh) -> Batch:
    batch = recipe.batch
    micro = min(batch.micro_size, MOST_MICRO)
    accumulated = min(MOST_ACCUMULATED, batch.global_size // (batch.micro_size * full.data))
    return batch.model_copy(update={"micro_size": micro, "global_size": micro * mesh.data * accumulated})


def _optimizer(recipe: Recipe, missing: list[str]) -> Any:
    optimizer = recipe.optimizer
    if optimizer.implementation == "auto" and recipe.parallel.offload_ratio == 1.0:
        # Nothing is compiled unless the recipe asks for it.
        if recipe.parallel.offload_optimizer != "none":
            missing.append("DeepSpeed's CPU optimizer kernel (torch's takes its place)")
        return optimizer.model_copy(update={"implementation": "torch"})
    return optimizer


def _schedule(recipe: Recipe) -> dict[str, Any]:
    """Each shape has room in STEPS steps."""
    schedule = recipe.schedule
    return {
        "warmup_steps": min(schedule.warmup_steps, 1),
        "decay_steps": 1 if schedule.decay_steps else None,
        "step_size": 1 if schedule.step_size else None,
        "milestones": schedule.milestones and (1,),
        "peak_fraction": 0.5 if schedule.type == "one_cycle" else schedule.peak_fraction,
        "patience": 0 if schedule.type == "reduce_on_plateau" else schedule.patience,
    }


def _precision(recipe: Recipe, missing: list[str]) -> dict[str, Any]:
    precision = recipe.precision
    if precision.dtype == "fp8":
        missing.append("precision.dtype='fp8' (CUDA; bf16 takes its place)")
        return {"dtype": "bf16"}
    if precision.tf32:
        missing.append("precision.tf32 (CUDA)")
    # A large loss scale overflows in the first steps and skips them.
    return {"initial_scale_power": min(8, precision.initial_scale_power)} if precision.dtype == "fp16" else {}


def _parallel(recipe: Recipe, mesh: Mesh) -> Any:
    parallel = recipe.parallel
    changes: dict[str, Any] = {name: mesh.size(name) for name in DEGREES}
    if parallel.param_persistence_threshold is not None:
        changes["param_persistence_threshold"] = min(PERSISTENT, parallel.param_persistence_threshold)
    return parallel.model_copy(update=changes)


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    evaluation = recipe.evaluation
    still = recipe.model_copy(update={"evaluation": evaluation.model_copy(update={"early_stopping_patience": 0})})
    return {
        # Three steps are too few to be patient about.
        "early_stopping_patience": 0,
        "metric": evaluation.metric if watches(still) else "loss",
        "every_steps": min(1, evaluation.every_steps),
        "max_sequences": HELD_OUT if has_held_out(recipe) else None,
    }


def _checkpoint(recipe: Recipe) -> Checkpoint:
    return recipe.checkpoint.model_copy(update={"every_steps": 1, "keep": STEPS})


def _left_out(recipe: Recipe, full: Mesh, mesh: Mesh) -> list[str]:
    """What is reduced, and what no CPU shows."""
    found = []
    if full.world_size > mesh.world_size:
        found.append(f"{plural(full.world_size, 'rank')} ({full.describe()})")
    if full.data > 1 == mesh.data:
        found.append("data parallelism and what ZeRO shares among replicas (the ranks hold no second replica)")
    if recipe.launch.hosts > 1:
        found.append(f"{recipe.launch.hosts} hosts and their network")
    if recipe.tracking.trackers:
        found.append(f"tracking.trackers={recipe.tracking.trackers}")
    if recipe.launch.device != "cpu":
        found.append("CUDA kernels, memory and speed of a GPU")
    return found
