"""What the ranks of a rehearsal do: one makes model and data small; all train, with the toolkit's own `train`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.recipe import Recipe
from toolkit.rehearsal.few_rows import write_few_rows
from toolkit.rehearsal.small_model import SmallModel, write_small_model
from toolkit.rehearsal.this_cpu import on_this_cpu
from toolkit.train.inputs import load_task
from toolkit.train.run import RunOptions, train


@dataclass(frozen=True)
class Prepared:
    """A rehearsal whose model and data lie in its folder."""

    recipe: Recipe
    model: str
    """What is trained, in words."""
    said: list[str]
    """What was read, in words."""
    stand_ins: list[str]
    """What is not the recipe's own, in words."""
    not_shown: list[str]
    """What this host lacks for it, in words."""


def prepare(rank: int, world_size: int, recipe: Recipe, folder: str) -> Prepared:
    """Write model and data of `recipe` to `folder`; runs in one rank alone."""
    place = Path(folder)
    not_shown: list[str] = []
    recipe = on_this_cpu(recipe, not_shown)
    model = _model(recipe, place / "model")
    changes: dict[str, Any] = {"model": model.model}
    if not model.own_tokens and getattr(recipe.task, "sample_prompt", None) is not None:
        # It may have tokens in it that another tokenizer writes otherwise.
        fields = type(recipe.task).model_fields
        idle: dict[str, Any] = {
            name: fields[name].default for name in ("sample_prompt", "sample_tokens") if name in fields
        }
        changes["task"] = recipe.task.model_copy(update=idle)
    small = Recipe(**{**dict(recipe), **changes})
    rows = write_few_rows(small, load_task(small), place / "data")
    batch = small.batch.model_copy(update={"sequence_length": rows.sequence_length})
    parallel = small.parallel
    if parallel.nvme_path is not None:
        parallel = parallel.model_copy(update={"nvme_path": str(place / "nvme")})
    changes |= {"data": rows.data, "task": rows.task, "batch": batch, "parallel": parallel}
    made = Recipe(**{**dict(recipe), **changes})
    return Prepared(made, _described(model), rows.said, model.stand_ins + rows.stand_ins, not_shown)


def _described(model: SmallModel) -> str:
    if model.parameters is None:
        return f"{model.name}, as it is"
    size = f"{model.parameters / 1e6:.1f} M parameters"
    return f"{model.name} as it is, {size}" if model.is_whole else f"{model.name}, scaled down to {size}"


def _model(recipe: Recipe, folder: Path) -> SmallModel:
    if recipe.task.brings_model:
        return SmallModel(recipe.model, str(getattr(recipe.task, "target", recipe.task.name)), None, True, True, [])
    return write_small_model(recipe, folder, num_layers=max(2, recipe.parallel.pipeline))


def train_small(rank: int, world_size: int, recipe: Recipe, folder: str, name: str, resume: str | None) -> int:
    """Train `recipe` as its start would; the exit code."""
    # What is prepared here is of no use to any other run.
    os.environ["TOOLKIT_CACHE"] = str(Path(folder) / "cache")
    return train(recipe, RunOptions(name, Path(folder) / name, resume), keep_group=True)
