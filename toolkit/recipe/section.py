"""The base of every recipe section: frozen, strict about names, and speaking in messages."""

from __future__ import annotations

from typing import Any

import pydantic

from toolkit.errors import RecipeError, did_you_mean
from toolkit.recipe.field_type import admits_bool, describe_field
from toolkit.recipe.removed import removed_field
from toolkit.recipe.synonyms import answer


class Section(pydantic.BaseModel):
    """A frozen group of recipe fields. An unknown name or a value of the wrong type raises RecipeError."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # a run uses few of the kinds of sections
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise as_recipe_error(type(self), error) from None

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """True is 1 to Python, and pydantic takes it for a number: nobody who writes it means one."""
        given = value if isinstance(value, tuple | list) else (value,)
        field = cls.model_fields[str(info.field_name)]
        if any(isinstance(part, bool) for part in given) and not admits_bool(field.annotation):
            raise ValueError(describe_field(field))
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        raise RecipeError(
            f"{_dotted(type(self), name)} cannot be set to {value!r}: a recipe does not change",
            expected="the value where the recipe is made",
            do="write it there, or give it on the command line",
        )


def as_recipe_error(section: type[pydantic.BaseModel], error: pydantic.ValidationError) -> RecipeError:
    """Pydantic's findings for `section` as one message that names each key and value."""
    for detail in error.errors():
        removed = removed_field(_name(section, detail), detail["input"])
        if detail["type"] == "extra_forbidden" and removed is not None:
            return removed
    found = [_describe(section, detail) for detail in error.errors()]
    return RecipeError(
        "; ".join(what for what, _ in found),
        expected="; ".join(dict.fromkeys(expected for _, expected in found)),
        do="correct the recipe or the flag; `--help` lists every field with its type and meaning",
    )


def _describe(section: type[pydantic.BaseModel], detail: Any) -> tuple[str, str]:
    name = _name(section, detail)
    if detail["type"] == "extra_forbidden":
        last = str(detail["loc"][-1])
        known = answer(name)
        hint = f" (here it is {known[0]})" if known and known[0] else did_you_mean(last, section.model_fields)
        owners = section.owners(last) if hasattr(section, "owners") else []
        if owners:
            hint = f" of {section.model_fields['name'].default} ({', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it)"
        return f"unknown field {name}{hint}", (
            known[1] if known and known[1] else f"one of {', '.join(section.model_fields)}"
        )
    if detail["type"] == "missing":
        return f"{name} is missing", f"a value for {name}"
    return f"{name}={detail['input']!r}", _lower_first(str(detail["msg"]).removeprefix("Value error, "))


def _name(section: type[pydantic.BaseModel], detail: Any) -> str:
    return _dotted(section, ".".join(str(part) for part in detail["loc"]))


def _dotted(section: type[pydantic.BaseModel], name: str) -> str:
    return name if section.__name__ == "Recipe" else f"{getattr(section, 'section', section.__name__.lower())}.{name}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
