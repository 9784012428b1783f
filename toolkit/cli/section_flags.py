"""How tyro sees the sections of a recipe: each field a flag, its meaning read from the source only for --help."""

from __future__ import annotations

import inspect
from typing import Any

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from toolkit.recipe.meanings import meanings
from toolkit.recipe.section import Section

REGISTRY = ConstructorRegistry()


@REGISTRY.struct_rule
def _section(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The flags of a section that has its values already; None for anything else, which tyro knows by itself."""
    if not isinstance(info.default, Section):
        return None
    kind = type(info.default)
    return StructConstructorSpec(kind, tuple(_flag(info.default, name) for name in kind.model_fields))


def _flag(section: Section, name: str) -> StructFieldSpec:
    value: Any = getattr(section, name)
    if isinstance(value, Section):
        return StructFieldSpec(name, type(value), value, inspect.getdoc(type(value)))
    annotation: Any = type(section).model_fields[name].annotation
    return StructFieldSpec(name, annotation, value, lambda: meanings(type(section)).get(name))
