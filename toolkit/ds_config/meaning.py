"""What DeepSpeed does with each key of a configuration, and with the keys that are missing and matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.ds_config.rules.context import Context
from toolkit.ds_config.rules.stages import KEY_STAGES
from toolkit.ds_config.rules.trainer_values import trainer_value
from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.schema_lookup import known_at
from toolkit.ds_config.schema_top import ENVIRONMENT, TOP
from toolkit.ds_config.schema_unknown import is_comment, join
from toolkit.ds_config.values import show


@dataclass(frozen=True)
class Meaning:
    """One key and what it does, or what its absence does."""

    where: str
    """Dotted key, or a variable of the environment."""
    value: Any
    """As it is written; None where it is missing."""
    is_written: bool
    does: str
    """A clause that follows the key, or for a missing key its default."""
    filled: Any = None
    """What the Trainer writes in the place of "auto"."""


def meanings(context: Context) -> list[Meaning]:
    """The keys of the configuration in their order, then what is missing, from the top down, then the environment."""
    outside = [Meaning(name, None, False, does) for name, does in ENVIRONMENT.items()]
    return [*_written(context, "", context.config, TOP), *_missing(context, "", context.config, TOP), *outside]


def _written(context: Context, path: str, held: Mapping[str, Any], section: Section) -> Iterator[Meaning]:
    for name, value in held.items():
        where = join(path, str(name))
        known = section.keys.get(str(name)) or section.each
        if known is not None and path in ("", "optimizer", "scheduler"):  # whose params depend on the type
            known = known_at(context.config, where) or known
        if str(name) in section.removed:
            does = f"is refused: it was removed (instead: {section.removed[str(name)]})"
        elif known is None or section.is_open:
            does = _unknown(str(name), section)
        else:
            does = _does(context, where, value, known)
        filled = None
        if value == "auto" and context.training_args is not None:
            filled = trainer_value(context.training_args, where)
        yield Meaning(where, value, True, does, filled)
        yield from _inside(context, where, value, known)


def _inside(context: Context, where: str, value: Any, known: Key | Section | None) -> Iterator[Meaning]:
    if isinstance(known, Section) and isinstance(value, Mapping):
        yield from _written(context, where, value, known)
    elif isinstance(known, Key) and known.item is not None and isinstance(value, list):
        for index, element in enumerate(value):
            if isinstance(element, Mapping):
                yield from _written(context, f"{where}[{index}]", element, known.item)


def _unknown(name: str, section: Section) -> str:
    if section.is_open:
        return "is the script's own"
    if section.is_closed:
        return "is refused: DeepSpeed does not know it here"
    return "is a comment" if is_comment(name) else "is ignored: DeepSpeed does not know it here"


def _does(context: Context, where: str, value: Any, known: Key | Section) -> str:
    if isinstance(known, Key) and known.instead:
        return f"is {'deprecated' if known.acts_as else 'refused or ignored'} (instead: {known.instead})"
    if isinstance(known, Key) and value is not None and value != "auto" and not known.accepts(value):
        return f"{known.does}; {show(value)} is none of its values ({known.describe()})"
    stages = (
        KEY_STAGES.get(where.removeprefix("zero_optimization.")) if where.startswith("zero_optimization.") else None
    )
    if stages is not None and context.stage not in stages:
        return f"is ignored at stage {context.stage} (it {known.does})"
    if isinstance(known, Key) and known.kind == "bool" and value is False:
        return f"is off (on, it {known.does})"
    if isinstance(known, Key) and not isinstance(value, dict | list | bool):
        return known.does_for.get(value, known.does)
    return known.does


def _missing(context: Context, path: str, held: Mapping[str, Any], section: Section) -> Iterator[Meaning]:
    for name, known in section.keys.items():
        where = join(path, name)
        known = known_at(context.config, where) or known
        if name not in held:
            if known.absent and _matters(context, where, held, known):
                yield Meaning(where, None, False, known.absent)
        elif isinstance(known, Section) and isinstance(held[name], Mapping) and _acts(context, where, known):
            yield from _missing(context, where, held[name], known)


def _acts(context: Context, where: str, section: Section) -> bool:
    """Whether a section is switched on, if it has a switch, or names a device, if it can."""
    if "enabled" in section.keys:
        return context.flag(f"{where}.enabled")
    return context.raw(f"{where}.device") not in (None, "none") if "device" in section.keys else True


def _matters(context: Context, where: str, held: Mapping[str, Any], known: Key | Section) -> bool:
    """Whether the default comes into play beside what is written."""
    if isinstance(known, Key) and any(alias in held for alias in known.aliases):
        return False
    if where in IN_16_BITS:
        return context.dtype != "fp32"
    name = where.removeprefix("zero_optimization.")
    return name not in KEY_STAGES or not where.startswith("zero_optimization.") or context.stage in KEY_STAGES[name]


IN_16_BITS = ("communication_data_type", "data_types", "data_types.grad_accum_dtype")
"""Keys whose absence matters where parameters are in 16 bits."""
