"""What the command line says, in the words that tyro knows: switches with a value, mappings as JSON or on top of the recipe's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from toolkit.cli.flag_errors import field_of
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import flat
from toolkit.recipe.field_type import is_mapping, is_switch

TRUTH = {"true": True, "false": False}


def mappings(argv: Sequence[str], recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the fields of names and values that `argv` has something for hold in `recipe`, by their dotted names."""
    values = flat(recipe)
    names = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    return {name: values[name] for name in names if isinstance(values.get(name), dict)}


def laid_over(fields: Mapping[str, Mapping[str, Any]], recipe: Recipe) -> Recipe:
    """`recipe` with other names and values in the fields with these dotted names."""
    for name, values in fields.items():
        section, _, field = name.rpartition(".")
        changed = getattr(recipe, section).model_copy(update={field: dict(values)})
        recipe = recipe.model_copy(update={section: changed})
    return recipe


def switches(argv: Sequence[str], recipe: Recipe) -> list[str]:
    """`--data.packing False` as `--data.no-packing`, the form that tyro knows; everything else as it is."""
    words: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        dotted = name.removeprefix("--").replace("-", "_")
        field = field_of(dotted, recipe) if name.startswith("--") else None
        if field is not None and is_mapping(field):
            words += [name, *_json_pairs(name, [value] if equals else _until_flag(waiting))]
            continue
        if field is None or not is_switch(field):
            words.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and waiting[0].lower() in TRUTH else "true"
        if value.lower() not in TRUTH:
            raise RecipeError(f"{name} {value}", expected="True or False", do="see --help for every field")
        section, dot, last = dotted.rpartition(".")
        words.append(f"--{section}{dot}{'' if TRUTH[value.lower()] else 'no-'}{last}")
    return words


def _until_flag(waiting: list[str]) -> list[str]:
    """The words before the next flag, taken from `waiting`."""
    words = list(takewhile(lambda word: not word.startswith("--"), waiting))
    del waiting[: len(words)]
    return words


def _json_pairs(name: str, words: list[str]) -> list[str]:
    """The names and values of an object that is written as JSON; pairs of words as they are."""
    if len(words) != 1 or not words[0].lstrip().startswith("{"):
        return words
    try:
        found = json.loads(words[0])
    except ValueError as error:
        raise RecipeError(
            f"{name} {words[0]!r} is not JSON: {error}",
            expected="""pairs of a name and its value, or JSON such as '{"hidden_size": 32}' in single quotes""",
            do="correct it, or write the pairs, for instance hidden_size 32",
        ) from None
    return [
        text
        for key, value in found.items()
        for text in (
            key,
            value if isinstance(value, str) else str(value) if isinstance(value, bool) else json.dumps(value),
        )
    ]
