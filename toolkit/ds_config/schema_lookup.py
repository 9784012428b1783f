"""The table of any key of one configuration, also of those whose table depends on a type: optimizer.params, scheduler.params."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.schema_optimizers import (
    CLASS_PARAMS,
    optimizer_class,
    optimizer_section,
)
from toolkit.ds_config.schema_schedules import SCHEDULERS
from toolkit.ds_config.schema_top import TOP

OLD_OFFLOADS = {"offload_optimizer": "cpu_offload", "offload_param": "cpu_offload_param"}
"""Section -> the deprecated key that DeepSpeed rewrites into it."""

STEP = re.compile(r"([^.\[]+)((?:\[\d+\])*)\.?")


def offload_device(config: Mapping[str, Any], name: str) -> str:
    """zero_optimization.NAME.device as DeepSpeed reads it, "none" where it is absent or malformed."""
    zero = config.get("zero_optimization")
    block = zero.get(name) if isinstance(zero, Mapping) else None
    if isinstance(block, Mapping):
        device = block.get("device")
        return device if device in ("cpu", "nvme") else "none"
    return "cpu" if isinstance(zero, Mapping) and zero.get(OLD_OFFLOADS[name]) is True else "none"


def params_section(config: Mapping[str, Any], name: str) -> Section | None:
    """The table of optimizer.params or scheduler.params for the type that is written; None where there is none."""
    block = config.get(name)
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or not isinstance(kind, str):
        return None
    if name == "scheduler":
        return SCHEDULERS.get(kind)
    params = block.get("params", {})
    offloads = offload_device(config, "offload_optimizer") != "none"
    built = optimizer_class(kind, params if isinstance(params, Mapping) else {}, offloads=offloads)
    return None if built is None or built not in CLASS_PARAMS else optimizer_section(built)


def known_at(config: Mapping[str, Any], path: str) -> Key | Section | None:
    """The table of the dotted key `path` in `config`; None where DeepSpeed has no such key."""
    known: Key | Section | None = TOP
    taken: list[str] = []
    for name, items in STEP.findall(path):
        taken.append(name)
        if not isinstance(known, Section):
            return None
        known = known.keys.get(name) or known.each
        if taken in (["optimizer", "params"], ["scheduler", "params"]):
            known = params_section(config, taken[0]) or known
        if items and isinstance(known, Key):
            known = known.item
    return known
