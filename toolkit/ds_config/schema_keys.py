"""The vocabulary of the schema tables: what one key, and what one section of a DeepSpeed JSON, may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["bool", "int", "count", "number", "rates", "text", "numbers", "texts", "list", "object", "any"]

ARTICLES: dict[Kind, str] = {
    "bool": "true or false",
    "int": "an integer",
    "count": "an integer",
    "number": "a number",
    "rates": "a number, or a list of one for each parameter group",
    "text": "a string",
    "numbers": "a list of two numbers",
    "texts": "a list of strings",
    "list": "a list",
    "object": "an object",
    "any": "any value",
}


@dataclass(frozen=True)
class Same:
    """Another name of a key, under which its value means exactly the same."""

    name: str
    section: str | None = None
    """Dotted; "" for the top level, None for the section in which the old name stands."""

    def __str__(self) -> str:
        if self.section is None:
            return f'"{self.name}"'
        return f'"{self.name}" ' + (f"in {self.section}" if self.section else "at the top level")

    def beside(self, path: str) -> str:
        """The dotted key, for an old name in the section at `path`."""
        section = path if self.section is None else self.section
        return f"{section}.{self.name}" if section else self.name


@dataclass(frozen=True)
class Key:
    """One key. `count` is an integer that may be written as 5e8, as DeepSpeed's typed sections allow; `int` may not."""

    kind: Kind
    low: float | None = None
    high: float | None = None
    above: float | None = None
    """Exclusive lower bound."""
    below: float | None = None
    """Exclusive upper bound."""
    choices: tuple[str | int | None, ...] = ()
    """Literal values; checked before `kind`, and the only strings allowed where `kind` is not "text"."""
    caseless: bool = False
    """String choices match in any case."""
    nullable: bool = False
    auto: bool = False
    """The Hugging Face Trainer fills in "auto" here, from its arguments or the model."""
    accelerate: bool = False
    """accelerate, and so the Trainer, fills in "auto" here or overwrites what is written."""
    instead: str = ""
    """Not empty: deprecated or refused by DeepSpeed, and this is what to write."""
    acts_as: Key | Section | None = None
    """Deprecated only: what DeepSpeed reads it as, with a line in its log. None: it refuses or ignores it."""
    becomes: tuple[str, Any] | None = None
    """Deprecated only: the name that DeepSpeed reads it as, and what true is there; None for the same value."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the same key; two at once are an error."""
    item: Section | None = None
    """Section of each element of a list."""
    members: tuple[str, ...] = ()
    """The strings that a list of strings may hold; empty: any."""
    does: str = ""
    """What DeepSpeed does with it, as the end of a sentence that the key begins."""
    does_for: Mapping[Any, str] = field(default_factory=dict, hash=False)
    """The same for single values."""
    absent: str = ""
    """What it does where the key is missing and that matters: its default, and what follows."""

    def that(self, does: str, absent: str = "", *, does_for: Mapping[Any, str] | None = None) -> Key:
        """The same values for a key of its own."""
        return replace(self, does=does, absent=absent, does_for=does_for or {})

    def accepts(self, value: Any) -> bool:
        """Whether DeepSpeed reads `value` as it is written, without coercing or ignoring it."""
        if value is None:
            return self.nullable or None in self.choices
        if self.choices and self._is_choice(value):
            return True
        if self.choices and self.kind == "text":
            return False
        return self._is_of_kind(value) and self._is_in_range(value)

    def _is_choice(self, value: Any) -> bool:
        if isinstance(value, str) and self.caseless:
            return value.lower() in [str(choice).lower() for choice in self.choices]
        return any(type(value) is type(choice) and value == choice for choice in self.choices)

    def _is_of_kind(self, value: Any) -> bool:
        if self.kind == "bool":
            return isinstance(value, bool)
        if self.kind in ("int", "count"):
            whole = isinstance(value, int) or (self.kind == "count" and isinstance(value, float) and value.is_integer())
            return is_number(value) and whole and abs(value) <= LARGEST
        if self.kind == "number":
            return is_number(value)
        if self.kind == "rates":
            return is_number(value) or (isinstance(value, list) and all(is_number(element) for element in value))
        if self.kind == "numbers":
            return isinstance(value, list) and len(value) == 2 and all(is_number(element) for element in value)
        if self.kind == "texts":
            return isinstance(value, list) and all(
                isinstance(element, str) and (not self.members or element in self.members) for element in value
            )
        kinds: dict[str, type] = {"text": str, "list": list, "object": Mapping, "any": object}
        return isinstance(value, kinds[self.kind])

    def _is_in_range(self, value: Any) -> bool:
        if self.kind not in ("int", "count", "number", "numbers", "rates"):
            return True
        values = value if isinstance(value, list) else [value]
        return all(
            (self.low is None or element >= self.low)
            and (self.high is None or element <= self.high)
            and (self.above is None or element > self.above)
            and (self.below is None or element < self.below)
            for element in values
        )

    def describe(self) -> str:
        """The values that work, in words."""
        literals = [_json(choice) for choice in self.choices]
        if self.kind == "text" and literals:
            return "one of " + ", ".join(literals) + (", or null" if self.nullable else "")
        if self.members:
            return "a list out of " + ", ".join(_json(member) for member in self.members) + self._or_null()
        bounds = [f">= {self.low:g}"] if self.low is not None else []
        bounds += [f"> {self.above:g}"] if self.above is not None else []
        bounds += [f"<= {self.high:g}"] if self.high is not None else []
        bounds += [f"< {self.below:g}"] if self.below is not None else []
        alternatives = [" ".join([ARTICLES[self.kind], " and ".join(bounds)]).strip(), *literals]
        return " or ".join(alternatives) + self._or_null()

    def _or_null(self) -> str:
        return " or null" if self.nullable else ""


@dataclass(frozen=True)
class Section:
    """One object of the JSON. `each` is the section of every value whose key the user chooses."""

    keys: Mapping[str, Key | Section]
    removed: Mapping[str, str | Same] = field(default_factory=dict)
    """Keys of older versions -> what replaces them."""
    required: tuple[str, ...] = ()
    is_open: bool = False
    """Other keys are the user's own."""
    each: Section | None = None
    nullable: bool = False
    twins: tuple[tuple[str, str], ...] = ()
    """Two names of one section; both at once are refused."""
    or_boolean: bool = False
    """true and false are an old form of the section, of which a rule speaks."""
    is_closed: bool = False
    """DeepSpeed itself refuses keys that it does not know here, where it ignores them elsewhere."""
    does: str = ""
    """What DeepSpeed does with the section."""
    absent: str = ""
    """What it does where the section is missing and that matters."""

    def that(self, does: str, absent: str = "") -> Section:
        """The same keys for a section of its own."""
        return replace(self, does=does, absent=absent)


LARGEST = 2**63 - 1
"""The largest integer that torch, and so DeepSpeed's arithmetic, holds."""


def is_number(value: Any) -> bool:
    """Whether `value` is a finite JSON number that 64 bits hold; true and false are not."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= LARGEST
    return isinstance(value, float) and math.isfinite(value)


def _json(value: str | int | None) -> str:
    return "null" if value is None else f'"{value}"' if isinstance(value, str) else str(value)


BOOL = Key("bool")
TEXT = Key("text")
TEXT_OR_NULL = Key("text", nullable=True)
POSITIVE = Key("int", low=1)
NON_NEGATIVE = Key("int", low=0)
INTEGER = Key("int")
NUMBER = Key("number")
SHARE = Key("number", low=0, high=1)
ELEMENTS = Key("count", low=0)
OBJECT = Key("object")


def one_of(*choices: str, caseless: bool = False, nullable: bool = False) -> Key:
    """A string out of `choices`."""
    return Key("text", choices=choices, caseless=caseless, nullable=nullable)


def retired(
    instead: str,
    *,
    acts_as: Key | Section | None = None,
    aliases: tuple[str, ...] = (),
    becomes: tuple[str, Any] | None = None,
) -> Key:
    """A key that DeepSpeed still knows but that should not be written; `instead` says what to write."""
    return Key("any", instead=instead, acts_as=acts_as, aliases=aliases, becomes=becomes)
