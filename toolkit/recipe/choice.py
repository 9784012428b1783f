"""Sections of which a recipe has one of several kinds, told apart by their `name`: each kind with only its own fields."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar

from toolkit.errors import RecipeError, did_you_mean
from toolkit.recipe.section import Section


class Choice(Section):
    """One kind of section. A subclass that gives `name` a default is a kind by that name, wherever it is defined."""

    section: ClassVar[str]
    """The field of the recipe that holds it; also the group of entry points that further kinds are found by, after "toolkit."."""
    kinds: ClassVar[dict[str, type[Any]]]
    """Name -> the class of that kind, of those that were imported."""
    settings: ClassVar[frozenset[str]] = frozenset()
    """Fields that a resumed run may change: they leave the prepared examples and the meaning of a step as they are."""
    identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that a resumed run must keep although they leave the prepared examples as they are."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Field -> the other field without which it has no effect."""

    name: str
    """Which kind this is."""

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        super().__pydantic_init_subclass__(**keywords)
        name = cls.model_fields["name"].default
        if isinstance(name, str):
            cls.kinds[name] = cls

    def __init__(self, **values: Any) -> None:
        if type(self).model_fields["name"].is_required():
            kind, name = type(self), str(values.get("name"))
            classes = ", ".join(found.__name__ for found in kind.kinds.values())
            known = kind.kinds.get(name)
            raise RecipeError(
                f"{kind.section}={kind.__name__}({', '.join(f'{key}={value!r}' for key, value in values.items())})",
                expected=f"one of {classes}",
                do=f"write {kind.section}={'...' if known is None else known.__name__}(...), each with only its own fields",
            )
        super().__init__(**values)

    @classmethod
    def kind(cls, name: str) -> type[Any]:
        """The kind called `name`: a known one, the entry point of a package, or `module:Class`. Raises RecipeError for none."""
        if name in cls.kinds:
            return cls.kinds[name]
        points = importlib.metadata.entry_points(group=f"toolkit.{cls.section}s", name=name)
        for point in points:
            return cls._checked(point.load(), name)
        if ":" in name:
            module, _, attribute = name.partition(":")
            try:
                return cls._checked(getattr(importlib.import_module(module), attribute), name)
            except (ImportError, AttributeError) as error:
                raise RecipeError(
                    f"{cls.section}.name={name!r}: {error}",
                    expected="module:Class, where the module can be imported",
                    do="correct the name, or install the package that has it",
                ) from None
        raise RecipeError(
            f"{cls.section}.name={name!r}{did_you_mean(name, cls.kinds)}",
            expected=f"one of {', '.join(cls.kinds)}",
            do=f"correct {cls.section}.name",
        )

    @classmethod
    def _checked(cls, found: Any, name: str) -> type[Any]:
        base = next(kind for kind in cls.__mro__ if Choice in kind.__bases__)
        if isinstance(found, type) and issubclass(found, base):
            return found
        raise RecipeError(
            f"{cls.section}.name={name!r} is {found!r}",
            expected=f"a subclass of toolkit.{base.__name__}",
            do=f"correct {cls.section}.name, or the entry point",
        )

    @classmethod
    def made(cls, value: Any) -> Any:
        """`value`, made a section of the kind it names, or of the first, where it is a mapping."""
        if not isinstance(value, Mapping):
            return value
        fields = dict(value)
        return cls.kind(str(fields.pop("name", next(iter(cls.kinds)))))(**fields)

    def switched(self, name: str) -> Any:
        """The section of kind `name` with the fields that were set here. Raises RecipeError for one that it does not have."""
        kind = self.kind(name)
        given = {field: getattr(self, field) for field in sorted(self.model_fields_set) if field != "name"}
        foreign = [field for field in given if field not in kind.model_fields]
        if foreign:
            raise RecipeError(
                f"{self.section}.name={name!r} with "
                + ", ".join(f"{self.section}.{field}={given[field]!r}" for field in foreign),
                expected=f"fields that {name} has: {', '.join(kind.model_fields)}",
                do=f"take {', '.join(foreign)} out of the recipe, or keep {self.section}.name={self.name!r}",
            )
        return kind(**given)

    @classmethod
    def owners(cls, field: str) -> list[str]:
        """Names of the kinds that have `field`."""
        return [name for name, kind in cls.kinds.items() if field in kind.model_fields]
