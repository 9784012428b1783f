"""Runs that end in an export, inside test ranks, and what the model in training computes at that moment."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.manifest import complete_steps, folder_name
from toolkit.checkpoint.reader import load
from toolkit.ds_config.render import render
from toolkit.engine import device, process
from toolkit.errors import ToolkitError
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import model_ranks


@dataclass(frozen=True)
class Trained:
    """One run on one rank."""

    printed: str
    logits: torch.Tensor | None
    """Of the padded batch, by the model in training; None under pipelines, and for a run that was refused."""


def train_all(
    rank: int, world_size: int, jobs: list[tuple[Recipe, str, dict[str, list[list[int]]] | None]]
) -> list[Trained]:
    """Train each (recipe, output_dir) and put the batch through the model that its last checkpoint restores."""
    return [_train(recipe, Path(folder), batch) for recipe, folder, batch in jobs]


def _train(recipe: Recipe, folder: Path, batch: dict[str, list[list[int]]] | None) -> Trained:
    from toolkit.train.run import RunOptions, train

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            train(recipe, RunOptions("test", folder), keep_group=True)
        except ToolkitError as error:
            return Trained(f"{printed.getvalue()}error: {error}", None)
    logits = None if batch is None else _logits(recipe, folder, batch)
    return Trained(printed.getvalue(), logits)


def _logits(recipe: Recipe, folder: Path, batch: dict[str, list[list[int]]]) -> torch.Tensor:
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    me, silent = process.from_environment(recipe.parallel), Display(is_main=False)
    target = device.target(me.world_size, wanted=recipe.launch.device, model_ranks=model_ranks(recipe.parallel))
    inputs = prepare_inputs(recipe, me.data_rank, me.mesh.data, silent)
    restored = RunFolder(folder / "restored")
    engine = build_engine(recipe, inputs, render(recipe, target), me, restored, silent)
    checkpoints = folder / "checkpoints"
    load(engine, checkpoints / folder_name(complete_steps(checkpoints)[-1]), me.rank, me.world_size)
    tensors = {name: torch.tensor(values) for name, values in batch.items()}
    # A tensor by itself is what an engine takes for a loss.
    logits: torch.Tensor = engine.call(lambda model: [model(**tensors).logits.detach().clone()])[0]
    engine.close()
    return logits


def texts_of_three(tokenizer: Any, texts: list[str]) -> dict[str, list[list[int]]]:
    """Three texts as users batch them."""
    encoded = tokenizer(texts, padding=True)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
