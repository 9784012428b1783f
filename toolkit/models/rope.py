"""Rotary settings under the names of older config.json files, laid over a checkpoint's own.

transformers 5 keeps them in one field, `rope_parameters`, flat or by kind of layer. Its configuration classes take the
older names (rope_theta, rope_scaling, rope_local_base_freq, ...) when they are built, but what `rope_parameters` already
says wins; an override has to be written into it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

FIELD = "rope_parameters"
KEPT = ("rope_theta", "partial_rotary_factor")
"""Parts that stay as they are when an override of the whole does not mention them."""

SENTINEL = 0.4375
"""A number that no architecture has as its default, and that every rotary field accepts."""


def is_rotary_name(kind: type[PretrainedConfig], name: str) -> bool:
    """Whether `name` is one under which `kind` takes rotary settings."""
    if FIELD not in kind.__dataclass_fields__:
        return False
    return name in (FIELD, "rope_scaling") or bool(_places(kind, name))


def override(
    kind: type[PretrainedConfig], before: PretrainedConfig, changes: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`rope_parameters` of `before` with `changes`, given under any names that `kind` takes; None without changes."""
    found: dict[str, Any] = copy.deepcopy(getattr(before, FIELD, None) or {})
    nested = before.nested_rope_parameter_keys(found) if found else []
    whole = [name for name in ("rope_scaling", FIELD) if name in changes]
    for name in whole:
        found = _replace(found, nested, changes[name])
    numbers = [name for name in changes if name not in whole and is_rotary_name(kind, name)]
    for name in numbers:
        for *path, last in _places(kind, name):
            # The class may nest what the checkpoint keeps flat.
            place = found
            for key in path:
                place = place.get(key) or place
            place[last] = changes[name]
    return found if whole or numbers else None


def _replace(old: dict[str, Any], nested: list[str], new: Any) -> dict[str, Any]:
    """`new` in the place of `old`, without losing the base frequency that it does not mention."""
    new = dict(new or {"rope_type": "default"})
    if nested and not set(nested) & set(new):
        # What older files call rope_scaling is that of the layers that see everything.
        return {**old, "full_attention": _replace(old.get("full_attention") or {}, [], new)}
    if nested:
        return {
            **old,
            **{key: None if value is None else _replace(old.get(key) or {}, [], value) for key, value in new.items()},
        }
    return {**{name: old[name] for name in KEPT if name in old}, **new}


def _places(kind: type[PretrainedConfig], name: str) -> list[tuple[str, ...]]:
    """Where in `rope_parameters` a number given as `name` ends up, found by giving one."""
    try:
        parameters = getattr(kind(**{name: SENTINEL}), FIELD, None) or {}
    except Exception:
        # Not a number, or a field that goes with others: in any case none of these.
        return []
    found: list[tuple[str, ...]] = []
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            found += [(key, inner) for inner, part in value.items() if part == SENTINEL]
        elif value == SENTINEL:
            found.append((key,))
    return found
