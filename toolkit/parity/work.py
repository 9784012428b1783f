"""What the ranks of a comparison do: build the problem and train the reference; train one strategy."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from toolkit.data.words import write_rows, write_tokenizer
from toolkit.errors import ModelError
from toolkit.models.config import load_config
from toolkit.models.isolation import check_isolation, leak
from toolkit.models.scale import check_size, comparable, scale_down
from toolkit.parity import reference
from toolkit.parity.adapted import adapted, exported_weights, trained_weights
from toolkit.parity.optimizers import build_optimizer
from toolkit.parity.pairs import EmbeddingJudge, TargetJudge
from toolkit.parity.preferences import PreferenceJudge
from toolkit.parity.problem import (
    GLOBAL_SIZE,
    SEQUENCE_LENGTH,
    VOCABULARY,
    Curves,
    Problem,
    Wanted,
    attention,
    learning_rate,
    scaled_recipe,
)
from toolkit.parity.texts import TextJudge
from toolkit.recipe import Model, Recipe, SentenceEmbedding, Seq2Seq, Task
from toolkit.tasks import task_class
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.progress import Display
from toolkit.train.run import RunOptions, train

WEIGHTS = "reference.pt"


def prepare(rank: int, world_size: int, recipe: Recipe, wanted: Wanted, folder: str) -> Problem:
    """Write model, tokenizer and data to `folder`; train the reference; runs in one rank alone.

    Raises ModelError for an architecture that cannot be had here or scaled down.
    """
    place = Path(folder)
    kind = task_class(recipe.task).auto_class
    config, num_parameters = _small(_load_config(recipe, wanted), kind, wanted)
    config.save_pretrained(place / "model")
    write_tokenizer(place / "tokenizer", VOCABULARY)
    scaled = scaled_recipe(recipe, wanted, place)
    _write_data(scaled, place)
    _use_cache(place)
    inputs = prepare_inputs(scaled, 0, 1, Display(is_main=False))
    plain = _build_model(scaled, inputs, place)
    model = adapted(plain, inputs, scaled.seed)
    steps = [batch.micro_batches for batch in inputs.batches.iterate(0, wanted.steps)]
    scaled = _with_clipping(scaled, _train(copy.deepcopy(model), steps[:1], scaled, clip=False).norms[0])
    curve = _train(model, steps, scaled)
    rounding = [name for name, share in curve.shares.items() if 0.0 < share < reference.ROUNDING]
    torch.save({"weights": trained_weights(model, curve.weights), "rounding": rounding}, place / WEIGHTS)
    return Problem(scaled, type(plain).__name__, num_parameters, Curves(curve.losses, list(curve.norms)))


def train_strategy(rank: int, world_size: int, recipe: Recipe, folder: str, name: str) -> Curves | None:
    """Train `recipe` through the toolkit's own `train`; rank 0 returns what came out of it."""
    place = Path(folder)
    _use_cache(place)
    run = place / name
    train(recipe, RunOptions(name, run), keep_group=True)
    if rank != 0:
        return None
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    norms = [None if record.get("skipped") else record["grad_norm"] for record in records]
    kind = task_class(recipe.task).auto_class
    exported = exported_weights(run / "export", kind)
    wanted = torch.load(place / WEIGHTS, weights_only=True)
    apart = weight_deviation(exported, wanted["weights"], wanted["rounding"])
    return Curves([record["loss"] for record in records], norms, apart)


def weight_deviation(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], left_out: Collection[str] = ()
) -> float:
    """Norm of the difference between `found` and `wanted`, but for those `left_out`, relative to the norm of `wanted`."""
    if found.keys() != wanted.keys():
        return math.inf
    names = [name for name in wanted if name not in left_out]
    with torch.no_grad():
        difference = torch.nn.utils.get_total_norm([found[name] - wanted[name] for name in names])
    return float(difference / torch.nn.utils.get_total_norm(list(wanted.values())))


def _small(config: PretrainedConfig, kind: Any, wanted: Wanted) -> tuple[PretrainedConfig, int]:
    """`config` scaled down, and the parameters of the model that `kind` makes of it."""
    try:
        small = comparable(
            scale_down(
                config,
                num_layers=wanted.num_layers,
                key_value_heads=wanted.key_value_heads,
                vocabulary_size=VOCABULARY,
            )
        )
        return small, check_size(kind, small)
    except ModelError as error:
        other = "or compare another model with --architecture"
        raise ModelError(error.what, expected=error.expected, do=f"{error.do}, {other}") from None


def _load_config(recipe: Recipe, wanted: Wanted) -> PretrainedConfig:
    try:
        return load_config(_model(recipe, wanted), vocabulary_size=VOCABULARY, overrides={})
    except ModelError as error:
        if wanted.architecture is not None:
            raise
        stand_in = "or compare its kind of model by name, for instance --architecture llama"
        raise ModelError(error.what, expected=error.expected, do=f"{error.do}, {stand_in}") from None


def _model(recipe: Recipe, wanted: Wanted) -> Model:
    """Where the architecture comes from; never its weights, nor its dropout."""
    if wanted.architecture is None:
        return recipe.model.model_copy(update={"dropout": None, "attention": attention(recipe.model)})
    return Model(
        architecture=wanted.architecture, weights="random", tokenizer="none", attention=attention(recipe.model)
    )


def _write_data(recipe: Recipe, place: Path) -> None:
    write_rows(
        Path(recipe.data.train),
        recipe.task.name,
        split=recipe.data.overlong == "split",
        count=GLOBAL_SIZE * 20,
        longest=SEQUENCE_LENGTH,
        size=VOCABULARY,
        seed=recipe.seed,
        kind=getattr(recipe.task, "problem_type", "") or getattr(recipe.task, "scheme", ""),
    )


def _use_cache(place: Path) -> None:
    # What is prepared here is of no use to any other run.
    os.environ["TOOLKIT_CACHE"] = str(place / "cache")


def _build_model(recipe: Recipe, inputs: Inputs, place: Path) -> nn.Module:
    torch.manual_seed(recipe.seed)
    model: Any = inputs.task.auto_class.from_config(inputs.model_config, dtype=torch.float32)
    model.save_pretrained(place / "model")
    if recipe.data.packing and inputs.task.is_causal:
        # The judge of other tasks never packs.
        with torch.no_grad():
            check_isolation(leak(model.eval()), type(model).__name__)
    network: nn.Module = model
    return network


def _with_clipping(recipe: Recipe, first_norm: float) -> Recipe:
    """Clipping that bites, where the recipe clips at all: at half of the first step's norm."""
    if not recipe.optimizer.max_grad_norm:
        return recipe
    optimizer = recipe.optimizer.model_copy(update={"max_grad_norm": float(f"{first_norm / 2:.2g}")})
    return recipe.model_copy(update={"optimizer": optimizer})


def _train(model: nn.Module, steps: list[Any], recipe: Recipe, *, clip: bool = True) -> reference.Curve:
    optimizer, total = recipe.optimizer, recipe.steps or len(steps)
    return reference.train(
        model,
        steps,
        lambda groups: build_optimizer(optimizer, groups),
        lambda step: learning_rate(optimizer.learning_rate, step, total),
        dtype=recipe.precision.dtype,
        max_grad_norm=optimizer.max_grad_norm if clip else 0.0,
        weight_decay=optimizer.weight_decay,
        judge=partial(judge_of, recipe.task),
    )


def judge_of(options: Task, model: nn.Module) -> reference.Judge:
    """What says the losses of the task `options`, for a model before its first step."""
    if options.name in ("dpo", "orpo", "simpo", "kto", "reward_model"):
        return PreferenceJudge(options, model)
    if options.name in ("masked_lm", "sequence_classification", "token_classification", "question_answering"):
        return TextJudge(options)
    if isinstance(options, Seq2Seq):
        return TargetJudge(options.label_smoothing)
    if isinstance(options, SentenceEmbedding):
        return EmbeddingJudge(options)
    return reference.TokenJudge(getattr(options, "label_smoothing", 0.0))
