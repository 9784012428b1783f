"""One run of the product inside a test rank, and the same global batches for the reference."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from toolkit.models.assets import resolve
from toolkit.models.random_weights import RandomWeights
from toolkit.parity import reference
from toolkit.parity.reference import Curve
from toolkit.parity.work import judge_of
from toolkit.recipe import Recipe
from toolkit.recipe.schedules import factor


def run_recipe(rank: int, world_size: int, recipes: list[tuple[Recipe, str, str | None]]) -> list[list[dict[str, Any]]]:
    """Train each (recipe, output_dir, resume) in turn, in this one process; returns the metrics records of each."""
    from toolkit.train.run import RunOptions, train

    found = []
    for recipe, output_dir, resume in recipes:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = train(recipe, RunOptions("test", Path(output_dir), resume), keep_group=True)
        assert code == 0, printed.getvalue()
        found.append(read_metrics(output_dir) if rank == 0 else [])
    return found


def read_metrics(output_dir: str | Path) -> list[dict[str, Any]]:
    """Step records of a run."""
    return [record for record in _records(Path(output_dir) / "metrics.jsonl") if "loss" in record]


def evaluations(output_dir: Path) -> dict[int, dict[str, float]]:
    """The step -> the metrics of each evaluation of a run."""
    return {record["step"]: record["eval"] for record in _records(output_dir / "metrics.jsonl") if "eval" in record}


def predictions(output_dir: Path, step: int) -> list[dict[str, Any]]:
    """What the evaluation at `step` has written down."""
    return _records(next((output_dir / "predictions").glob(f"step-*{step}.jsonl")))


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def global_batches(recipe: Recipe, num_steps: int) -> tuple[Any, list[list[dict[str, torch.Tensor]]]]:
    """The task, and for each step all micro-batches of the global batch."""
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    inputs = prepare_inputs(recipe, 0, 1, Display(is_main=False))
    return inputs, [batch.micro_batches for batch in inputs.batches.iterate(0, num_steps)]


def reference_curve(rank: int, world_size: int, recipe: Recipe, weights: str | None = None) -> Curve:
    """What the judge makes of `recipe` (AdamW), without the final weights: they go to the file `weights`."""
    inputs, steps = global_batches(recipe, recipe.steps or 0)
    source, optimizer = resolve(str(recipe.model.path)), recipe.optimizer
    kind = inputs.task.auto_class
    model, info = kind.from_pretrained(
        source, config=inputs.model_config, dtype=torch.float32, output_loading_info=True
    )
    # The starting point is not what is compared: the judge gets the same new head.
    drawn = RandomWeights(kind, inputs.model_config, recipe.seed)
    with torch.no_grad():
        for name in info["missing_keys"]:
            model.get_parameter(name).copy_(drawn.parameter(name))
    curve = reference.train(
        model,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: optimizer.learning_rate * factor(recipe.schedule, step, recipe.steps or 0),
        dtype=recipe.precision.dtype,
        max_grad_norm=optimizer.max_grad_norm,
        weight_decay=optimizer.weight_decay,
        judge=partial(judge_of, recipe.task),
    )
    if weights is not None:
        torch.save(curve.weights, weights)
    return dataclasses.replace(curve, weights={})


def export_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an exported Hugging Face directory."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        weights |= load_file(file)
    return weights
