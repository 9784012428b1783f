"""The base of every recipe section: frozen, strict about names, and speaking in messages."""

from __future__ import annotations

from typing import Any

import pydantic

from toolkit.errors import RecipeError, did_you_mean


class Section(pydantic.BaseModel):
    """A frozen group of recipe fields. An unknown name or a value of the wrong type raises RecipeError."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise as_recipe_error(type(self), error) from None


def as_recipe_error(section: type[pydantic.BaseModel], error: pydantic.ValidationError) -> RecipeError:
    """Pydantic's findings for `section` as one message that names each key and value."""
    found = [_describe(section, detail) for detail in error.errors()]
    return RecipeError(
        "; ".join(what for what, _ in found),
        expected="; ".join(dict.fromkeys(expected for _, expected in found)),
        do="correct the recipe or the flag; `--help` lists every field with its type and meaning",
    )


def _describe(section: type[pydantic.BaseModel], detail: Any) -> tuple[str, str]:
    prefix = "" if section.__name__ == "Recipe" else section.__name__.lower() + "."
    name = prefix + ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        last = str(detail["loc"][-1])
        return f"unknown field {name}{did_you_mean(last, section.model_fields)}", (
            f"one of {', '.join(section.model_fields)}"
        )
    if detail["type"] == "missing":
        return f"{name} is missing", f"a value for {name}"
    if "RecipeError" in str(detail.get("ctx", {})):
        return str(detail["msg"]), "a consistent section"
    return f"{name}={detail['input']!r}", _lower_first(str(detail["msg"]).removeprefix("Value error, "))


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
