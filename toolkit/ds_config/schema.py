"""The strict schema: every key of a DeepSpeed JSON is known, has the right type, and none is left to chance.

DeepSpeed itself rejects unknown keys only in its pydantic sections and coerces or ignores much of the rest; here
each of that is a finding. The tables are schema_top, schema_tables, schema_zero and schema_optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from toolkit.ds_config.findings import Finding
from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.schema_optimizers import (
    CLASS_PARAMS,
    DEEPSPEED_OPTIMIZERS,
    REFUSED_OPTIMIZERS,
    REFUSED_SCHEDULERS,
    SCHEDULERS,
    TORCH_OPTIMIZERS,
    optimizer_class,
    optimizer_section,
)
from toolkit.ds_config.schema_top import DEEPSPEED_VERSION, TOP
from toolkit.errors import did_you_mean

SHORT_LISTING = 14
"""Sections with at most this many keys are listed whole in messages."""

SCHEMA_RULES = {
    "unknown-key": "DeepSpeed reads most sections with dict.get and ignores keys it does not know, without a message",
    "removed-key": "keys of older DeepSpeed versions are refused at start, even when disabled (runtime/config.py)",
    "deprecated-key": "DeepSpeed rewrites or refuses the key, and Hugging Face does not look at it",
    "wrong-type": "DeepSpeed coerces or stores values of the wrong type; they fail later or mean something else",
    "missing-key": "DeepSpeed or the class it builds fails without the key",
    "leftover-auto": '"auto" is Hugging Face\'s; DeepSpeed drops it for the default in some sections, fails in others',
    "alias-twice": "two spellings of one key are refused by DeepSpeed (zero/config.py, populate_by_name)",
    "optimizer-type": "names are matched exactly for torch.optim's classes, in any case for DeepSpeed's own",
    "scheduler-type": "names are matched exactly, and not every class of torch.optim.lr_scheduler fits in JSON",
}
"""Rule ids of the schema -> why."""


def check_schema(config: Mapping[str, Any], *, allow_auto: bool = False) -> list[Finding]:
    """Findings about keys, types and leftover "auto" in `config`.

    `allow_auto`: the file is for the Hugging Face Trainer, which replaces "auto" in the keys marked so.
    """
    found = list(_section("", config, TOP, allow_auto))
    found += _typed(config, "optimizer", allow_auto)
    found += _typed(config, "scheduler", allow_auto)
    return found


def _section(path: str, value: Any, section: Section, allow_auto: bool) -> Iterator[Finding]:
    if value is None and section.nullable:
        return
    if not isinstance(value, Mapping):
        yield _wrong(path, value, "an object {...}")
        return
    for name, inner in value.items():
        yield from _entry(path, str(name), inner, section, allow_auto)
    for name in section.required:
        if name not in value:
            where, key = _join(path, name), section.keys[name]
            expected = key.describe() if isinstance(key, Key) else "an object {...}"
            yield Finding(where, "missing-key", f"{where} is missing", expected, f"write {name!r}")
    for name, key in section.keys.items():
        if isinstance(key, Key) and key.alias and name in value and key.alias in value:
            yield Finding(
                _join(path, name),
                "alias-twice",
                f"{_join(path, name)} and {_join(path, key.alias)} are the same key",
                "one spelling",
                f"remove {key.alias!r}",
            )


def _entry(path: str, name: str, value: Any, section: Section, allow_auto: bool) -> Iterator[Finding]:
    where = _join(path, name)
    if name in section.removed:
        instead = section.removed[name]
        what = f"{where} was removed before DeepSpeed {DEEPSPEED_VERSION}"
        yield Finding(where, "removed-key", what, f"instead: {instead}", f"remove {name!r}")
    elif name not in section.keys:
        if section.each is not None:
            yield from _section(where, value, section.each, allow_auto)
        elif not section.is_open:
            yield _unknown(path, name, section)
    else:
        known = section.keys[name]
        if isinstance(known, Section):
            yield from _section(where, value, known, allow_auto)
        else:
            yield from _value(where, value, known, allow_auto)


def _value(where: str, value: Any, key: Key, allow_auto: bool) -> Iterator[Finding]:
    if value is None and key.nullable and key.instead:
        return
    if key.instead:
        what = f"{where}={show(value)} is deprecated or refused by DeepSpeed"
        yield Finding(where, "deprecated-key", what, f"instead: {key.instead}", f"replace {_last(where)!r}")
    elif value == "auto" and "auto" not in key.choices:
        if not (allow_auto and key.auto):
            yield _auto(where, key, allow_auto)
    elif not key.accepts(value):
        yield _wrong(where, value, key.describe())
    elif key.item is not None:
        for index, element in enumerate(value):
            yield from _section(f"{where}[{index}]", element, key.item, allow_auto)


def _typed(config: Mapping[str, Any], name: str, allow_auto: bool) -> Iterator[Finding]:
    """The "optimizer" or "scheduler" section: its type, and its params by the table of that type."""
    block = config.get(name)
    if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
        return
    kind, params = block["type"], block.get("params", {})
    find_section = _scheduler_params if name == "scheduler" else _optimizer_params
    section = find_section(config, kind, params)
    if isinstance(section, Finding):
        yield section
    # A missing scheduler.params is one finding, not one for each key it would hold.
    elif section is not None and isinstance(params, Mapping) and (name != "scheduler" or "params" in block):
        yield from _section(f"{name}.params", params, section, allow_auto)


def _optimizer_params(config: Mapping[str, Any], kind: str, params: Any) -> Section | Finding | None:
    names = ("AdamW", "Adam", "Adagrad", "Lion", "Lamb", "Muon", *TORCH_OPTIMIZERS)
    if kind in REFUSED_OPTIMIZERS:
        return _refused_type("optimizer", kind, REFUSED_OPTIMIZERS[kind], names)
    if kind.lower() not in DEEPSPEED_OPTIMIZERS and kind not in TORCH_OPTIMIZERS:
        return _unknown_type("optimizer", kind, names)
    offloads = offload_device(config, "offload_optimizer") != "none"
    name = optimizer_class(kind, params if isinstance(params, Mapping) else {}, offloads=offloads)
    return None if name is None or name not in CLASS_PARAMS else optimizer_section(name)


def _scheduler_params(config: Mapping[str, Any], kind: str, params: Any) -> Section | Finding | None:
    if kind in REFUSED_SCHEDULERS:
        return _refused_type("scheduler", kind, REFUSED_SCHEDULERS[kind], tuple(SCHEDULERS))
    if kind not in SCHEDULERS:
        return _unknown_type("scheduler", kind, tuple(SCHEDULERS))
    return SCHEDULERS[kind]


def offload_device(config: Mapping[str, Any], name: str) -> str:
    """zero_optimization.NAME.device as DeepSpeed reads it, "none" where it is absent or malformed."""
    zero = config.get("zero_optimization")
    block = zero.get(name) if isinstance(zero, Mapping) else None
    device = block.get("device") if isinstance(block, Mapping) else None
    return device if device in ("cpu", "nvme") else "none"


def _refused_type(section: str, kind: str, reason: str, names: tuple[str, ...]) -> Finding:
    where = f"{section}.type"
    return Finding(where, f"{section}-type", f"{where}={kind!r}: {reason}", _listing(names), f"change {where}")


def _unknown_type(section: str, kind: str, names: tuple[str, ...]) -> Finding:
    where = f"{section}.type"
    same = [name for name in names if name.lower() == kind.lower()]
    hint = f" (did you mean {same[0]!r}? names are matched exactly)" if same else did_you_mean(kind, names)
    return Finding(
        where,
        f"{section}-type",
        f"{where}={kind!r} is not {'an' if section[0] == 'o' else 'a'} {section} DeepSpeed can build{hint}",
        _listing(names),
        f"write {same[0]!r}" if same else f"change {where}",
    )


def _unknown(path: str, name: str, section: Section) -> Finding:
    where = _join(path, name)
    place = _elsewhere(name, path)
    if place is not None:
        hint, do = f" (it belongs {place})", f"move it: it belongs {place}"
    else:
        hint = did_you_mean(name, section.keys)
        do = "rename it" if hint else "remove it, or correct its name"
    short = len(section.keys) <= SHORT_LISTING
    return Finding(
        where,
        "unknown-key",
        f"unknown key {where}{hint}",
        _listing(section.keys) if short else f"a key that DeepSpeed {DEEPSPEED_VERSION} reads {_place(path)}",
        do,
    )


@cache
def _places() -> dict[str, list[str]]:
    """Key -> the dotted sections that have it."""
    places: dict[str, list[str]] = {}

    def walk(path: str, section: Section) -> None:
        for name, inner in section.keys.items():
            places.setdefault(name, []).append(path)
            if isinstance(inner, Section):
                walk(_join(path, name), inner)

    walk("", TOP)
    for name in {key for keys in CLASS_PARAMS.values() for key in keys}:
        places.setdefault(name, []).append("optimizer.params")
    for name in {key for inner in SCHEDULERS.values() for key in inner.keys}:
        places.setdefault(name, []).append("scheduler.params")
    return places


def _elsewhere(name: str, path: str) -> str | None:
    places = [place for place in _places().get(name, []) if place != path]
    # A name that many sections share, such as "enabled", says nothing about where it was meant to go.
    return _place(places[0]) if len(places) == 1 else None


def _auto(where: str, key: Key, allow_auto: bool) -> Finding:
    if allow_auto:
        reason, do = "Hugging Face does not fill it in", "write the value"
    elif key.auto:
        reason = "only Hugging Face fills it in"
        do = "write the value, or name the Trainer's arguments with --training-args FILE.json"
    else:
        reason, do = "nothing fills it in", "write the value"
    return Finding(where, "leftover-auto", f'{where}="auto": {reason}', key.describe(), do)


def _wrong(where: str, value: Any, expected: str) -> Finding:
    return Finding(where, "wrong-type", f"{where}={show(value)}", expected, f"correct the value of {_last(where)!r}")


def show(value: Any) -> str:
    """`value` as it reads in JSON, cut to one short line."""
    names = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return names[value]
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listing(names: Any) -> str:
    return "one of " + ", ".join(dict.fromkeys(names))


def _place(path: str) -> str:
    return f"in {path}" if path else "at the top level"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _last(where: str) -> str:
    return where.rpartition(".")[2]
