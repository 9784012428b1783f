"""The strict schema: every key of a DeepSpeed JSON is known, has the right type, and none is left to chance.

DeepSpeed itself rejects unknown keys only in its pydantic sections and coerces or ignores much of the rest; here
each of that is a finding. The tables are schema_top, schema_tables, schema_zero and schema_optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.ds_config.edits import Edit, move, remove, rename, write
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.meant import meant
from toolkit.ds_config.possible import with_possible_fix, with_possible_removals
from toolkit.ds_config.schema_auto import COMMENT, Auto, holds_auto, leftover
from toolkit.ds_config.schema_keys import Key, Same, Section
from toolkit.ds_config.schema_lookup import params_section
from toolkit.ds_config.schema_optimizers import (
    DEEPSPEED_OPTIMIZERS,
    REFUSED_OPTIMIZERS,
    TORCH_OPTIMIZERS,
)
from toolkit.ds_config.schema_schedules import REFUSED_SCHEDULERS, SCHEDULERS, SCHEDULERS_MEANT
from toolkit.ds_config.schema_top import DEEPSPEED_VERSION, TOP
from toolkit.ds_config.schema_unknown import MOST_NAMED, is_comment, join, last, unknown_keys
from toolkit.ds_config.values import listing, show
from toolkit.errors import did_you_mean

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


def check_schema(config: Mapping[str, Any], *, for_trainer: bool = False) -> list[Finding]:
    """Findings about keys, types and leftover "auto" in `config`.

    `for_trainer`: the file is for the Hugging Face Trainer, which replaces "auto" in the keys marked so.
    """
    met = [*_section("", config, TOP), *_typed(config, "optimizer"), *_typed(config, "scheduler")]
    found = [with_possible_fix(config, item) for item in met if isinstance(item, Finding)]
    if for_trainer:  # accelerate writes its own value there, whatever stands in the file
        found = [item for item in found if (item.where, item.rule) != ("steps_per_print", "wrong-type")]
    autos = leftover([item for item in met if isinstance(item, Auto)], for_trainer=for_trainer)
    return [*found, *(with_possible_removals(config, item) for item in autos)]


def _section(path: str, value: Any, section: Section) -> Iterator[Finding | Auto]:
    if (value is None and section.nullable) or (isinstance(value, bool) and section.or_boolean):
        return
    if not isinstance(value, Mapping):
        yield _wrong(path, value, "an object {...}", _as_section(path, value, section))
        return
    unknown = []
    for name, inner in value.items():
        if name in section.removed or name in section.keys:
            yield from _known(path, name, inner, section)
        elif section.each is not None:
            yield from _section(join(path, name), inner, section.each)
        elif not section.is_open:
            unknown.append(name)
            if is_comment(name) and holds_auto(inner):
                yield Auto(join(path, name), COMMENT)
    yield from unknown_keys(path, unknown, section)
    yield from _missing(path, value, section)
    yield from _spelled_twice(path, value, section)


def _known(path: str, name: str, value: Any, section: Section) -> Iterator[Finding | Auto]:
    where = join(path, name)
    if name in section.removed:
        instead = section.removed[name]
        what = f"{where} was removed before DeepSpeed {DEEPSPEED_VERSION}"
        fix = (move(where, instead.beside(path)),) if isinstance(instead, Same) else ()
        fix = (remove(where),) if _asks_nothing(value) else fix
        yield Finding(where, "removed-key", what, f"instead: {instead}", f"remove {name!r}", fix=fix)
        return
    known = section.keys[name]
    if isinstance(known, Section):
        yield from _section(where, value, known)
    else:
        yield from _value(where, value, known)


def _missing(path: str, value: Mapping[str, Any], section: Section) -> Iterator[Finding]:
    for name in section.required:
        if name not in value:
            where, key = join(path, name), section.keys[name]
            expected = key.describe() if isinstance(key, Key) else "an object {...}"
            yield Finding(where, "missing-key", f"{where} is missing", expected, f"write {name!r}")


def _spelled_twice(path: str, value: Mapping[str, Any], section: Section) -> Iterator[Finding]:
    pairs = [(name, alias) for name, key in section.keys.items() if isinstance(key, Key) for alias in key.aliases]
    for name, alias in (*pairs, *section.twins):
        if name in value and alias in value:
            where, other, key = join(path, name), join(path, alias), section.keys[name]
            worse = name if isinstance(key, Key) and key.instead else alias
            what = f"{where} and {other} are the same key"
            fix = (remove(join(path, worse)),) if value[name] == value[alias] else ()
            yield Finding(where, "alias-twice", what, "one spelling", f"remove {worse!r}", fix=fix)


def _value(where: str, value: Any, key: Key) -> Iterator[Finding | Auto]:
    if value is None and key.nullable and key.instead:
        return
    if key.instead:
        yield from _retired(where, value, key)
    elif value == "auto":
        yield Auto(where, key)
    elif not key.accepts(value):
        certain = meant(key, value)
        yield _wrong(where, value, key.describe(), () if certain is None else (write(where, certain),))
    elif key.item is not None:
        yield from _elements(where, value, key.item)


def _elements(where: str, elements: list[Any], section: Section) -> Iterator[Finding | Auto]:
    faulty = 0
    for index, element in enumerate(elements):
        found = list(_section(f"{where}[{index}]", element, section))
        yield from found
        faulty += bool(found)
        if faulty == MOST_NAMED:
            return  # the same mistake again and again


def _asks_nothing(value: Any) -> bool:
    """Whether the value of a key that DeepSpeed refuses even so switches off what the key was for."""
    return value in (None, False) or (isinstance(value, Mapping) and (not value or value.get("enabled") is False))


def _in_todays_words(where: str, value: Any, key: Key) -> tuple[Edit, ...]:
    """What DeepSpeed itself makes of a deprecated key."""
    if key.becomes is None:
        return ()
    name, meaning = key.becomes
    if meaning is None:
        return (rename(where, name),)
    return (write(where, meaning), rename(where, name)) if value is True else ()


def _retired(where: str, value: Any, key: Key) -> Iterator[Finding | Auto]:
    expected, name = f"instead: {key.instead}", last(where)
    if key.acts_as is None:
        what = f"{where}={show(value)} is refused or ignored by DeepSpeed"
        yield Finding(where, "deprecated-key", what, expected, f"replace {name!r}")
        return
    asks_nothing = value is None or value is False
    fix = (remove(where),) if asks_nothing else _in_todays_words(where, value, key)
    do = f"remove {name!r}" if asks_nothing else f"replace {name!r} by {key.instead}"
    yield Finding(where, "deprecated-key", f"{where}={show(value)} is deprecated", expected, do, "warning", fix=fix)
    if isinstance(key.acts_as, Section):
        yield from _section(where, value, key.acts_as)
    elif value is not None:
        yield from _value(where, value, key.acts_as)


def _typed(config: Mapping[str, Any], name: str) -> Iterator[Finding | Auto]:
    """The "optimizer" or "scheduler" section: its type, and its params by the table of that type."""
    block = config.get(name)
    if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
        return
    kind, params = block["type"], block.get("params", {})
    find_section = _scheduler_params if name == "scheduler" else _optimizer_params
    section = find_section(config, kind)
    if isinstance(section, Finding):
        yield section
    # A missing scheduler.params is one finding, not one for each key it would hold.
    elif section is not None and isinstance(params, Mapping) and (name != "scheduler" or "params" in block):
        yield from _section(f"{name}.params", params, section)


def _optimizer_params(config: Mapping[str, Any], kind: str) -> Section | Finding | None:
    names = ("AdamW", "Adam", "Adagrad", "Lion", "Lamb", "Muon", *TORCH_OPTIMIZERS)
    if kind in REFUSED_OPTIMIZERS:
        return _refused_type("optimizer", kind, REFUSED_OPTIMIZERS[kind], names)
    if kind.lower() not in DEEPSPEED_OPTIMIZERS and kind not in TORCH_OPTIMIZERS:
        return _unknown_type("optimizer", kind, names)
    return params_section(config, "optimizer")


def _scheduler_params(config: Mapping[str, Any], kind: str) -> Section | Finding | None:
    if kind in REFUSED_SCHEDULERS:
        return _refused_type("scheduler", kind, REFUSED_SCHEDULERS[kind], tuple(SCHEDULERS))
    if kind not in SCHEDULERS:
        return _unknown_type("scheduler", kind, tuple(SCHEDULERS))
    return params_section(config, "scheduler")


def _refused_type(section: str, kind: str, reason: str, names: tuple[str, ...]) -> Finding:
    where = f"{section}.type"
    return Finding(where, f"{section}-type", f"{where}={show(kind)}: {reason}", listing(names), f"change {where}")


def _unknown_type(section: str, kind: str, names: tuple[str, ...]) -> Finding:
    where = f"{section}.type"
    word = kind.strip().lower()
    same = next((name for name in names if name.lower() == word), None)
    other = SCHEDULERS_MEANT.get(word) if section == "scheduler" else None
    if other:
        hint = f" (DeepSpeed: {other!r})"
    else:
        hint = f" (did you mean {same!r}? names are matched exactly)" if same else did_you_mean(kind[:100], names)
    return Finding(
        where,
        f"{section}-type",
        f"{where}={show(kind)} is not {'an' if section[0] == 'o' else 'a'} {section} DeepSpeed can build{hint}",
        listing(names),
        f"write {other or same!r}" if other or same else f"change {where}",
        fix=(write(where, same),) if same else (),
    )


def _as_section(path: str, value: Any, section: Section) -> tuple[Edit, ...]:
    """ "fp16": true is {"enabled": true}."""
    word = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    return (write(path, {"enabled": word}),) if isinstance(word, bool) and "enabled" in section.keys else ()


def _wrong(where: str, value: Any, expected: str, fix: tuple[Edit, ...] = ()) -> Finding:
    do = f"correct the value of {last(where)!r}"
    return Finding(where, "wrong-type", f"{where}={show(value)}", expected, do, fix=fix)
