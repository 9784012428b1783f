"""The fields of a recipe that is being drafted, each with the reason for its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.recipe import Recipe
from toolkit.recipe.dotted import CHOICES, chosen, default, recipe_of, sections_of, switched
from toolkit.recipe.effect import acting


@dataclass(frozen=True)
class Reason:
    """Why a field has its value."""

    field: str
    value: Any
    why: str


@dataclass
class Sheet:
    """The fields of a recipe being drafted."""

    values: dict[str, Any]
    given: Mapping[str, Any]
    """Those that the user has set: they stay."""
    reasons: list[Reason] = field(default_factory=list)
    exchanged: set[str] = field(default_factory=set, init=False)
    """Sections of which the user has chosen another kind than the source's."""

    def __post_init__(self) -> None:
        named = {section: self.given[f"{section}.name"] for section in CHOICES if f"{section}.name" in self.given}
        self.exchanged |= {section for section, name in named.items() if self._become(section, name)}
        self.values |= self.given

    def _become(self, section: str, name: Any) -> bool:
        """Make `section` one of kind `name`; whether it was of another."""
        is_other: bool = self.values.get(f"{section}.name") != name
        if is_other:
            self.values = switched(self.values, section, name)
        return is_other

    def set(self, name: str, value: Any, why: str = "") -> None:
        """Give field `name` its value, unless the user has; without a reason it goes without saying."""
        if name in self.given:
            return
        if why:
            self.reasons.append(Reason(name, value, why))
        section, _, field = name.rpartition(".")
        if section in CHOICES and field == "name":
            self._become(section, value)
        self.values[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def recipe(self) -> Recipe:
        """The recipe. What of the source has no effect any more goes back to its default."""
        while idle := [name for name in self._idle() if name not in self.given]:
            self.values |= {name: default(name, self.values) for name in idle}
        return recipe_of(self.values)

    def _idle(self) -> list[str]:
        """The fields that are not at their default and cannot act."""
        unchecked = Recipe.model_construct(**sections_of(chosen(self.values), self.values, built=True))
        needed = acting(unchecked)
        changed = {name: needed.get(name) for name, value in self.values.items() if value != default(name, self.values)}
        return [name for name, acts in changed.items() if acts is not None and not acts.when(unchecked)]


def comments(sheet: Sheet) -> dict[str, list[str]]:
    """Above which part of the recipe which reason stands: of what was measured."""
    found: dict[str, list[str]] = {}
    for reason in sheet.reasons:
        section, _, name = reason.field.rpartition(".")
        if name in ("sequence_length", "global_size", "evaluation_examples") or section == "":
            found.setdefault(section or name, []).append(f"{name}: {reason.why}.")
    return found
