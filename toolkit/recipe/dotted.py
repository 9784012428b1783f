"""A recipe as a flat mapping from dotted names (`optimizer.learning_rate`) to values, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from toolkit.recipe.choice import Choice
from toolkit.recipe.recipe import Recipe
from toolkit.recipe.tasks import Task
from toolkit.recipe.tuning import Tuning

CHOICES: dict[str, type[Choice]] = {"task": Task, "tuning": Tuning}
"""Sections that are of one of several kinds."""
_NOTHING: Mapping[str, Any] = {}


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every field of `recipe`, in the order of the sections."""
    values: dict[str, Any] = {}
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            values |= {f"{name}.{inner}": getattr(value, inner) for inner in type(value).model_fields}
        else:
            values[name] = value
    return values


def written(recipe: Recipe) -> set[str]:
    """The fields that stand in the recipe's file, at their default or not."""
    names: set[str] = set()
    for name in recipe.model_fields_set:
        value = getattr(recipe, name)
        names |= {f"{name}.{inner}" for inner in value.model_fields_set} if isinstance(value, BaseModel) else {name}
    return names


def default(name: str, values: Mapping[str, Any] = _NOTHING) -> Any:
    """Default of the field with the dotted `name`, of the kind of section that `values` name; pydantic's undefined for none."""
    section, _, field = name.rpartition(".")
    owner = section_class(section, values) if section else Recipe
    return owner.model_fields[field].get_default(call_default_factory=True)


def section_class(section: str, values: Mapping[str, Any] = _NOTHING) -> type[BaseModel]:
    """The class of a section of Recipe; where there are several kinds, the one that `values` name, else the default."""
    if section in CHOICES:
        name = values.get(f"{section}.name")
        return CHOICES[section].kind(name) if name is not None else type(Recipe.model_fields[section].default)
    found = Recipe.model_fields[section].annotation
    assert isinstance(found, type) and issubclass(found, BaseModel)
    return found


def switched(values: Mapping[str, Any], section: str, name: str) -> dict[str, Any]:
    """`values` with another kind of `section`: fields that both have keep their value, the others are at their default."""
    kind = CHOICES[section].kind(name)
    found = {other: value for other, value in values.items() if not other.startswith(f"{section}.")}
    for field, described in kind.model_fields.items():
        dotted = f"{section}.{field}"
        found[dotted] = values.get(dotted, described.get_default(call_default_factory=True))
    return found | {f"{section}.name": name}


def chosen(values: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
    """Those of `values` that are not at their default, and those named in `keep`."""
    return {name: value for name, value in values.items() if name in keep or value != default(name, values)}


def sections_of(values: Mapping[str, Any], kinds: Mapping[str, Any], *, built: bool) -> dict[str, Any]:
    """`values` by section: each a mapping from field to value, or that section `built`, of the kind that `kinds` name.

    A section that is not of its default kind is there even where none of its fields is among `values`.
    """
    found: dict[str, Any] = {}
    for section in CHOICES:
        if section_class(section, kinds) is not section_class(section):
            found[section] = {}
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        if section:
            found.setdefault(section, {})[field] = value
        else:
            found[field] = value
    if not built:
        return found
    sections = {*CHOICES, *(name.partition(".")[0] for name in values if "." in name)}
    return {name: section_class(name, kinds)(**value) if name in sections else value for name, value in found.items()}


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values. Raises RecipeError where they do not fit together."""
    return Recipe(**sections_of(chosen(values), values, built=True))
