"""The recipe that `toolkit new` starts from: the source's, for the user's model and data, with the user's flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.cli.flags import parse
from toolkit.cli.following import given_flags
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import default, flat, recipe_of
from toolkit.recipe.load import load_recipe

ABOUT_THE_DATA = ("split", "evaluation_split", "subset", "max_examples", "evaluation_examples")
"""Fields of the data section, besides the columns, that mean nothing for another file."""


@dataclass(frozen=True)
class Wanted:
    """What the command line says."""

    name: str
    source: str | None = None
    model: str | None = None
    data: str | None = None
    evaluation: str | None = None
    devices: int | None = None
    steps: int | None = None
    epochs: float | None = None
    fields: tuple[str, ...] = ()
    """Flags of recipe fields, as typed."""


@dataclass(frozen=True)
class Asked:
    """A beginning."""

    start: dict[str, Any]
    """Every field of the source, those of the model and the data replaced by the user's."""
    given: dict[str, Any]
    """The fields that the user has set: they stay."""
    recipe: Recipe
    """Both together, good for looking at model and data; what depends on these is not chosen yet."""


def asked(source: Path, wanted: Wanted) -> Asked:
    """The source's recipe for what is wanted. Raises RecipeError for flags that cannot be."""
    start = flat(load_recipe(source))
    start |= _own_model(wanted) | _own_data(wanted, start)
    if wanted.devices is not None:
        start |= {"launch.devices": wanted.devices, "launch.hosts": 1}
    names = sorted(given_flags(wanted.fields))
    recipe = recipe_of({**start, **_placeholders(start, names)})
    given: dict[str, Any] = {}
    if wanted.fields:
        recipe = parse(recipe, wanted.fields, output_dir=Path(), description="", prog="toolkit new NAME").recipe
        values = flat(recipe)
        known = {name: name for name in values} | {_switched_off(name): name for name in values}
        given = {known[name]: values[known[name]] for name in names if name in known}
    if wanted.evaluation is not None:
        given["data.evaluation"] = recipe.data.evaluation
    if wanted.devices is not None:
        given["launch.devices"] = wanted.devices
    return Asked(start, given, recipe)


def _switched_off(name: str) -> str:
    section, dot, field = name.rpartition(".")
    return f"{section}{dot}no_{field}"


def _own_model(wanted: Wanted) -> dict[str, Any]:
    if wanted.model is None:
        return {}
    fields = {name: default(f"model.{name}") for name in ("architecture", "weights", "config", "tokenizer")}
    return {f"model.{name}": value for name, value in (fields | {"path": wanted.model}).items()}


def _own_data(wanted: Wanted, start: Mapping[str, Any]) -> dict[str, Any]:
    if wanted.data is None:
        return (
            {} if wanted.evaluation is None else {"data.evaluation": wanted.evaluation, "data.evaluation_examples": 0}
        )
    fields = [name for name in start if name.startswith("task.") and (name.endswith("_field") or "sample_" in name)]
    fields += [f"data.{name}" for name in ABOUT_THE_DATA]
    return {
        **{name: default(name, start) for name in fields},
        "data.train": wanted.data,
        "data.evaluation": wanted.evaluation,
        "evaluation.max_sequences": None,
    }


def _placeholders(start: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Values under which every flag by itself has something to act on; what takes their place is chosen later."""
    streaming = start["data.streaming"] or "data.streaming" in names
    evaluation = start["data.evaluation"]
    is_held_out = evaluation is not None or not streaming
    if not is_held_out:
        watching = {
            name: default(name)
            for name in (
                *("checkpoint.keep_best", "evaluation.every_steps", "evaluation.max_sequences"),
                *("evaluation.metric", "evaluation.early_stopping_patience"),
            )
        }
    else:
        watching = {"checkpoint.keep_best": True, "evaluation.every_steps": 1}
    return {
        **watching,
        "data.evaluation_examples": int(evaluation is None and not streaming),
        "checkpoint.every_steps": 1,
        "schedule.warmup_steps": 0,
        "steps": 10**9 if streaming else None,
        "epochs": None if streaming else 1.0,
    }
