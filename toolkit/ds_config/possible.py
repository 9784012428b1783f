"""Whether a fix that follows from a key's name alone holds in one configuration, with all that stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toolkit.ds_config.edits import Edit
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.meant import meant
from toolkit.ds_config.places import ITEM
from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.schema_lookup import STEP, known_at


def with_possible_fix(config: Mapping[str, Any], found: Finding) -> Finding:
    """`found` as it is where each of its edits holds in `config`, else without them: its author has to decide."""
    return found if all(_holds(config, edit, found) for edit in found.fix) else replace(found, fix=())


def with_possible_removals(config: Mapping[str, Any], found: Finding) -> Finding:
    """`found`, which speaks of several keys, with the removal of those whose default DeepSpeed takes for "auto"."""
    return replace(found, fix=tuple(edit for edit in found.fix if _is_dropped(config, edit.where)))


def _is_dropped(config: Mapping[str, Any], where: str) -> bool:
    """Whether DeepSpeed drops "auto" at `where` (config_utils.py, DeepSpeedConfigModel), or has it for a default."""
    key, section = known_at(config, where), known_at(config, where.rpartition(".")[0])
    if isinstance(key, Key) and "auto" in key.choices:
        return True
    typed = isinstance(section, Section) and section.is_closed and not where.startswith("optimizer.")
    return typed and isinstance(section, Section) and where.rpartition(".")[2] not in section.required


def _holds(config: Mapping[str, Any], edit: Edit, found: Finding) -> bool:
    path, _, name = edit.where.rpartition(".")
    beside = _object_at(config, path)
    if edit.action == "remove":
        return beside is not None and name in beside
    if edit.action == "write":
        return beside is not None and (name not in beside or edit.where == found.where)
    target = f"{path}.{edit.to}" if edit.action == "rename" and path else edit.to
    there, _, new = target.rpartition(".")
    section = _object_at(config, there)
    if beside is None or name not in beside or section is None or new in section:
        return False
    if found.rule == "deprecated-key":  # DeepSpeed itself makes that of it
        return True
    known = known_at(config, target)
    if isinstance(known, Section):
        return isinstance(beside[name], Mapping) or (known.or_boolean and isinstance(beside[name], bool))
    value = beside[name]
    # A comment that moves to the top level, where DeepSpeed does not look at it, is no key.
    return not there if known is None else _suits(known, value)


def _suits(key: Key, value: Any) -> bool:
    filled = value == "auto" and (key.auto or key.accelerate)
    return not key.instead and (filled or key.accepts(value) or meant(key, value) is not None)


def _object_at(config: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The object at the dotted `path`; None where there is none."""
    node: Any = config
    for name, items in STEP.findall(path):
        node = node.get(name) if isinstance(node, Mapping) else None
        for index in ITEM.findall(items):
            node = node[int(index)] if isinstance(node, list) and int(index) < len(node) else None
    return node if isinstance(node, Mapping) else None
