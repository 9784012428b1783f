"""What a recipe field accepts, in words: for messages about values that are something else."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_NAMES: dict[Any, str] = {int: "an integer", float: "a number", bool: "True or False", str: "text", type(None): "None"}
_BOUNDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def describe_field(field: FieldInfo) -> str:
    """The values that `field` accepts, for instance `an integer greater than 0, or None`."""
    return _describe(field.annotation, field.metadata)


def admits_bool(annotation: Any) -> bool:
    """Whether True and False are among the values of type `annotation`."""
    return annotation is bool or any(admits_bool(part) for part in get_args(annotation))


def is_switch(field: FieldInfo) -> bool:
    """Whether `field` is either True or False, never anything else."""
    return field.annotation is bool


def is_several(field: FieldInfo) -> bool:
    """Whether `field` takes several values, one after the other."""
    return _has_tuple(field.annotation)


def _has_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_has_tuple, get_args(annotation)))


def is_mapping(field: FieldInfo) -> bool:
    """Whether `field` holds names with their values."""
    origin = get_origin(field.annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [item for extra in parts[1:] for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _describe(parts[0], inner)
    if origin is Literal:
        return f"one of {', '.join(str(part) for part in parts)}"
    if origin in (Union, types.UnionType):
        return ", or ".join(_describe(part, metadata if part is not type(None) else ()) for part in parts)
    if origin is tuple:
        count = "any number of values" if parts[-1] is Ellipsis else f"{len(parts)} values"
        return f"{count}, each {_describe(parts[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "pairs of a name and its value, or a JSON object"
    return _NAMES.get(annotation, f"a {getattr(annotation, '__name__', annotation)}") + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    said = [
        f"{words} {getattr(item, name):g}"
        for item in metadata
        for name, words in _BOUNDS.items()
        if hasattr(item, name)
    ]
    return f" {' and '.join(said)}" if said else ""
