"""What the parser of the command line complains about, in our form: the flag with its value, what it takes, what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import flat
from toolkit.recipe.field_type import describe_field, is_several
from toolkit.recipe.synonyms import choice_meant

OPTIONS = {
    "output_dir": "a folder",
    "resume": "auto, or a checkpoint folder",
    "resume_changed_data": "no value: the flag stands alone",
    "dry_run": "no value: the flag stands alone",
    "preview": "an integer of at least 1",
    "rehearse": "no value: the flag stands alone",
    "verbose": "no value: the flag stands alone",
}
"""What the flags take that belong to one start and not to the recipe."""


def refusal(text: str, argv: Sequence[str], recipe: Recipe, prog: str) -> RecipeError:
    """The error for tyro's boxed message `text` about `argv`."""
    plain = _plain(text)
    do = f"see `{prog} --help` for every field, its type and meaning"
    stray = re.search(r"Unrecognized options: (.*?)(?= -{5,}|$)", plain)
    if stray:
        words = stray[1]
        return RecipeError(
            f"unexpected {words!r} on the command line{_flag_before(words, argv)}",
            expected="flags, each with as many values as it takes, for instance --optimizer.learning_rate 1e-4",
            do=do,
        )
    named = re.search(r"--[A-Za-z][\w.-]*", plain)
    name = named[0][2:].replace("-", "_").rstrip("._") if named else ""
    expected = _expected(name, recipe)
    if not expected:
        return RecipeError(re.sub(r"-{5,} ?", "", plain).strip(), expected="values of the fields' types", do=do)
    values = " ".join(values_of(name, argv))
    field = field_of(name, recipe)
    if field is not None and is_several(field):
        do = f"write the values with spaces between them{_instance(name, recipe)}"
    hint = choice_meant(values, expected.removeprefix("one of ").split(", ")) if expected.startswith("one of ") else ""
    return RecipeError(f"--{name} {values}{hint}" if values else f"--{name} has no value", expected=expected, do=do)


def _plain(text: str) -> str:
    """The boxed message as one line."""
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", text).split()) or "the command line could not be read"


def _expected(name: str, recipe: Recipe) -> str:
    field = field_of(name, recipe)
    return OPTIONS.get(name, "") if field is None else describe_field(field)


def _instance(name: str, recipe: Recipe) -> str:
    """What the field `name` of several values holds in `recipe`, as the command line has it; nothing where it has none."""
    found = flat(recipe).get(name)
    return f", for instance --{name} {' '.join(map(str, found))}" if found else ""


def field_of(name: str, recipe: Recipe) -> FieldInfo | None:
    """The recipe field with the dotted `name`."""
    section, _, field = name.rpartition(".")
    owner = getattr(recipe, section, None) if section else recipe
    return type(owner).model_fields.get(field) if isinstance(owner, BaseModel) else None


def values_of(name: str, argv: Sequence[str]) -> list[str]:
    """The words that stand behind flag `name`."""
    found: list[str] = []
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            found = [value] if equals else []
            for later in argv[index + 1 :]:
                if later.startswith("--"):
                    break
                found.append(later)
    return found


def _flag_before(words: str, argv: Sequence[str]) -> str:
    first = words.split(" ")[0]
    before = [word for word in argv[: argv.index(first)] if word.startswith("--")] if first in argv else []
    return f" after {before[-1]}" if before else ""
