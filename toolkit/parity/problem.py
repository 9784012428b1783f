"""The recipe that all strategies train: the user's, with small numbers, on files in a temporary folder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.recipe import (
    Batch,
    Checkpoint,
    Data,
    LoRA,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    Task,
    Tracking,
    Tuning,
)
from toolkit.recipe.tasks.usual import on_usual_columns

VOCABULARY = 256
LARGEST_RANK = 8
SEQUENCE_LENGTH = 64
GLOBAL_SIZE, MICRO_SIZE = 16, 2
"""Eight micro-batches, some of them ragged: accumulation 8 on one replica, 4 on two."""
WARMUP_STEPS = 2
LEAST_STEPS = WARMUP_STEPS + 1

LEARNING_RATES = {"sgd": 0.1, "sgd_momentum": 0.1, "adagrad": 1e-2, "lion": 1e-4}
"""Rates at which a tiny model learns and two runs of it stay near each other; 1e-3 for the other optimizers."""


@dataclass(frozen=True)
class Wanted:
    """What is compared, beside the recipe."""

    steps: int
    dtype: str
    architecture: str | None
    """A model_type of transformers that takes the place of the recipe's model; None: the recipe's own."""
    num_layers: int
    key_value_heads: int


@dataclass(frozen=True)
class Curves:
    """What one run did, step by step."""

    losses: list[float]
    norms: list[float | None]
    """Gradient norms before clipping; None where the engine does not know it, or skipped the step."""
    weights: float = 0.0
    """How far the final weights are from the reference's, relative to their norm."""


@dataclass(frozen=True)
class Problem:
    """The problem as it lies in its folder, and what the reference made of it."""

    recipe: Recipe
    architecture: str
    num_parameters: int
    curves: Curves


def scaled_recipe(recipe: Recipe, wanted: Wanted, folder: Path) -> Recipe:
    """`recipe` on the model and the data in `folder`: its task, optimizer and options, in small numbers.

    The schedule is always a warm-up and a linear decay, and nothing random is left (dropout, noise): what differs
    between two runs is the strategy alone.
    """
    return Recipe(
        model=Model(
            path=str(folder / "model"),
            # Beside a configuration, transformers would take the architecture's own kind of tokenizer.
            tokenizer=str(folder / "tokenizer"),
            attention=attention(recipe.model),
            activation_checkpointing=recipe.model.activation_checkpointing,
            activation_offload=recipe.model.activation_offload,
            mlp_tiles=recipe.model.mlp_tiles,
        ),
        data=Data(
            train=str(folder / "rows.jsonl"),
            packing=recipe.data.packing,
            overlong=recipe.data.overlong,
            shuffle=recipe.data.shuffle,
            prefetch=0,
        ),
        task=_task(recipe.task),
        tuning=_tuning(recipe.tuning),
        batch=Batch(global_size=GLOBAL_SIZE, micro_size=MICRO_SIZE, sequence_length=SEQUENCE_LENGTH),
        optimizer=_optimizer(recipe.optimizer),
        schedule=Schedule(type="linear", warmup_steps=WARMUP_STEPS),
        precision=_precision(recipe.precision, wanted.dtype),
        parallel=Parallel(zero_stage=1),
        checkpoint=Checkpoint(export=True, export_dtype="fp32"),
        tracking=Tracking(tensorboard=False),
        steps=wanted.steps,
        seed=recipe.seed,
    )


def attention(model: Model) -> Literal["auto", "eager", "sdpa"]:
    """The implementation of attention that stands for the recipe's on a CPU: "auto" for those it does not have."""
    return model.attention if model.attention in ("eager", "sdpa") else "auto"


def _tuning(tuning: Tuning) -> Tuning:
    """`tuning` without dropout, and of a rank that a tiny model has."""
    if not isinstance(tuning, LoRA):
        return tuning
    return tuning.model_copy(update={"dropout": 0.0, "rank": min(tuning.rank, LARGEST_RANK)})


def _task(task: Task) -> Any:
    """`task` on our columns, without noise and samples."""
    still: dict[str, Any] = {
        name: type(task).model_fields[name].default
        for name in ("neftune_alpha", "sample_prompt", "sample_tokens")
        if name in type(task).model_fields
    }
    return on_usual_columns(task.model_copy(update=still))


def _optimizer(optimizer: Optimizer) -> Optimizer:
    changes: dict[str, Any] = {"learning_rate": LEARNING_RATES.get(optimizer.type, 1e-3), "adam_learning_rate": None}
    if optimizer.implementation == "auto":
        # Nothing is compiled unless the recipe asks for it.
        changes["implementation"] = "torch"
    return optimizer.model_copy(update=changes)


def _precision(precision: Precision, dtype: Any) -> Precision:
    sums = precision.accumulation_dtype if precision.accumulation_dtype == dtype else "fp32"
    # 2^8: a larger loss scale may overflow in the first steps and skip them, which the reference does not.
    scaling: dict[str, Any] = {"initial_scale_power": 8} if dtype == "fp16" else {}
    return Precision(dtype=dtype, accumulation_dtype=sums, **scaling)


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Rate of 0-based `step` of `steps`: linear up to `peak` in WARMUP_STEPS, then linear to zero."""
    return peak * min(step / WARMUP_STEPS, (steps - step) / (steps - WARMUP_STEPS))
