"""Every recipe of recipes/, cut down to a size that two CPU ranks train in a second; its strategy stays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import images
from toolkit.recipe import Custom, Recipe
from toolkit.recipe.effect import has_held_out
from toolkit.recipe.load import load_recipe
from toolkit.recipe.mesh import DEGREES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
STEPS = 4

ENCODED = ("masked_lm", "sequence_classification", "token_classification", "question_answering", "sentence_embedding")
"""Tasks of encoders."""

SMALL_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


FEW_OWN = {
    "toolkit.examples.two_tower:TwoTower": {"users": 20, "items": 40, "width": 8},
    "toolkit.examples.residues:MaskedResidues": {"families": 2, "sequences": 20, "held_out": 8, "width": 16},
}
"""What makes the data of shipped modules small, by their target."""


@dataclass(frozen=True)
class Inputs:
    """Where the tiny inputs lie."""

    llama: Path
    bert: Path
    t5: Path
    chats: Path
    classes: Path
    texts: Path
    rows: Path
    """Folder with rows of other tasks, by the name of the task; of media, folders TASK and checkpoints TASK-ARCHITECTURE."""
    speech: Path = Path()
    """Folder with models of speech and rows that name recordings."""


def shrink(path: Path, inputs: Inputs, scratch: Path) -> Recipe:
    """The recipe at `path` on tiny inputs, for STEPS steps on whatever device there is."""
    recipe = load_recipe(path)
    changes: dict[str, Mapping[str, Any]] = {
        "model": _model(recipe, inputs),
        "data": _data(recipe, inputs),
        "batch": _batch(recipe),
        "schedule": {
            "warmup_steps": min(recipe.schedule.warmup_steps, 2),
            "decay_steps": 1 if recipe.schedule.decay_steps else None,
            **({"peak_fraction": 0.5} if recipe.schedule.type == "one_cycle" else {}),
        },
        "task": _task(recipe),
        "evaluation": _evaluation(recipe),
        "checkpoint": {"every_steps": 2},
        "parallel": _parallel(recipe, scratch),
    }
    ranks = math.prod(changes["parallel"][degree] for degree in DEGREES)
    changes["launch"] = {"device": "auto", "devices": max(2, ranks), "hosts": 1}
    values = recipe.model_dump()
    for section, change in changes.items():
        values[section] |= change
    return Recipe(**values | {"steps": STEPS, "epochs": None})


def _batch(recipe: Recipe) -> dict[str, Any]:
    # A batch norm has no statistics of one image.
    size = {"global_size": 4, "micro_size": 1 if recipe.task.has_length else 2}
    return {**size, "sequence_length": 64} if recipe.task.has_length else size


def _task(recipe: Recipe) -> dict[str, Any]:
    """Short answers, and columns under the usual names: a recipe may be a user's own."""
    if isinstance(recipe.task, Custom):
        return {"arguments": recipe.task.arguments | FEW_OWN.get(recipe.task.target, {})}
    fields = type(recipe.task).model_fields
    columns = {name: field.default for name, field in fields.items() if name.endswith("_field")}
    if getattr(recipe.task, "second_text_field", None) is not None:
        columns["second_text_field"] = "second"
    generates = recipe.task.name == "causal_lm" and recipe.task.sample_prompt is not None
    windows = {"doc_stride": 8} if "doc_stride" in fields else {}
    if recipe.task.name == "image_classification":
        windows = {"image_size": 16}
    if recipe.task.name == "seq2seq":
        windows = {"max_new_tokens": 4, "target_length": 32}
    if recipe.task.name == "speech_seq2seq":
        windows = {"max_new_tokens": 4, "target_length": 20, "max_duration_s": 1.0}
    if recipe.task.name == "image_text_to_text" and recipe.task.scores:
        windows = {"max_new_tokens": 4}
    return {**columns, **windows, **({"sample_tokens": 4} if generates else {})}


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    # Four steps are too few to be patient about.
    every = {"every_steps": 2 if recipe.evaluation.every_steps else 0, "early_stopping_patience": 0}
    return every | ({"max_sequences": 4} if has_held_out(recipe) else {})


def _parallel(recipe: Recipe, scratch: Path) -> dict[str, Any]:
    degrees = {name: min(2, getattr(recipe.parallel, name)) for name in DEGREES}
    return {**degrees, **({"nvme_path": str(scratch)} if recipe.parallel.nvme_path else {})}


def _model(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    if recipe.task.name == "image_classification":
        small = {"config": recipe.model.config | images.CONFIGS["resnet"]}
        kind = "vit" if recipe.model.activation_checkpointing else "resnet"
        path = str(inputs.rows / f"image_classification-{kind}")
        return small if recipe.model.architecture is not None else {"path": path, "config": {}}
    if recipe.task.brings_model:
        return {}
    if recipe.model.architecture is not None:
        return {"tokenizer": str(inputs.llama), "config": recipe.model.config | SMALL_LLAMA, "attention": "sdpa"}
    if recipe.task.name == "speech_ctc":
        return {"path": str(inputs.speech / "wav2vec2")}
    if recipe.task.name == "speech_seq2seq":
        kind = "english" if recipe.task.language is None else "multilingual"
        return {"path": str(inputs.speech / kind), "attention": "sdpa"}
    if recipe.task.name in ENCODED:
        # No mask keeps packed documents of encoders apart: attention has to be chosen.
        return {"path": str(inputs.bert), "attention": "auto" if recipe.data.packing else "sdpa"}
    if recipe.task.name == "image_text_to_text":
        return {"path": str(inputs.rows / "vision"), "attention": "sdpa"}
    return {"path": str(inputs.t5 if recipe.task.name == "seq2seq" else inputs.llama), "attention": "sdpa"}


def _data(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Tiny rows of the kind that the recipe reads."""
    if isinstance(recipe.task, Custom):
        return {}
    if (inputs.rows / recipe.task.name).is_dir():
        source = inputs.rows / recipe.task.name
    elif recipe.task.name == "sequence_classification":
        source = inputs.classes
    elif recipe.task.name.startswith("speech_"):
        source = inputs.speech / "rows.jsonl"
    elif recipe.task.name in ("dpo", "orpo", "reward_model"):
        source = inputs.rows / "preferences.jsonl"
    elif found := sorted(inputs.rows.glob(f"{recipe.task.name}.*")):
        [source] = found
    else:
        source = inputs.texts if recipe.data.overlong == "split" else inputs.chats
    held_out = {"evaluation": str(source), "evaluation_split": "train"} if recipe.data.evaluation else {}
    few = {"evaluation_examples": min(4, recipe.data.evaluation_examples), "max_examples": None}
    return {"train": str(source), "subset": None, **few, **held_out}
