"""A recipe as a flat mapping from dotted names (`optimizer.learning_rate`) to values, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from toolkit.recipe.recipe import Recipe


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


def default(name: str) -> Any:
    """Default of the field with the dotted `name`; pydantic's undefined for one that has none."""
    section, _, field = name.rpartition(".")
    owner = section_class(section) if section else Recipe
    return owner.model_fields[field].get_default(call_default_factory=True)


def section_class(section: str) -> type[BaseModel]:
    """The class of a section of Recipe."""
    found = Recipe.model_fields[section].annotation
    assert isinstance(found, type) and issubclass(found, BaseModel)
    return found


def chosen(values: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
    """Those of `values` that are not at their default, and those named in `keep`."""
    return {name: value for name, value in values.items() if name in keep or value != default(name)}


def sections_of(values: Mapping[str, Any], *, built: bool) -> dict[str, Any]:
    """`values` by section: each a mapping from field to value, or that section `built`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        if section:
            found.setdefault(section, {})[field] = value
        else:
            found[field] = value
    if not built:
        return found
    return {
        name: section_class(name)(**value) if any(other.startswith(f"{name}.") for other in values) else value
        for name, value in found.items()
    }


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values. Raises RecipeError where they do not fit together."""
    return Recipe(**sections_of(chosen(values), built=True))
