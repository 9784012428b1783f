"""Full fine-tuning of an 8B shape on one device: with bf16 masters and states, on the host where the device is too small."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.levers import Lever, has_nvcc, is_known
from gpu_stages.machine import host_gib
from gpu_stages.setting import Setting, recipe_of
from gpu_stages.training import WARM_UP, measure_training

SHAPE = "8B"
SMALL_STATES = Lever("", {"precision.master_dtype": "bf16", "precision.state_dtype": "bf16"})
CHECKPOINTED = {"model.activation_checkpointing": True}
ROOM = 0.92
"""Share of a memory that states may take."""


def state_fields() -> dict[str, Any]:
    """bf16 masters and states, where the recipe has them."""
    return (
        dict(SMALL_STATES.fields)
        if is_known(SMALL_STATES)  # until they are part of the recipe
        else {}
    )


def rows(setting: Setting) -> list[Row]:
    """Two lengths, states on the device and, where they do not fit there, on the host."""
    found = []
    for host in (False, True):
        fields = CHECKPOINTED | state_fields() | (host_fields(setting) if host else {})
        missing = lacking_memory(setting, SHAPE, fields)
        if host and not lacking_memory(setting, SHAPE, CHECKPOINTED | state_fields()) and not setting.is_tiny:
            missing = "the device has room for the states"
        for length in (setting.length // 8, setting.length):
            name = f"{SHAPE}, {length:,} tokens, states on the {'host' if host else 'device'}"
            found.append(Row(name, functools.partial(_measure, setting, fields, length), missing))
    return found


def host_fields(setting: Setting) -> dict[str, Any]:
    """Adam on the host, by DeepSpeed's kernel where it can be built; a rehearsal builds nothing."""
    implementation = "deepspeed" if setting.device == "cuda" and has_nvcc() else "torch"
    return {"parallel.offload_optimizer": "cpu", "optimizer.implementation": implementation}


def lacking_memory(setting: Setting, shape: str, fields: Mapping[str, Any]) -> str:
    """Which memory is too small for the states of `shape` under `fields`; empty where there is room.

    Bytes per parameter: bf16 weights 2; gradients, masters and two moments 4 each, or 2 each in bf16.
    """
    size = 2 if "precision.master_dtype" in fields else 4
    gib = setting.parameters(shape) / 2**30
    on_host = "parallel.offload_optimizer" in fields
    # On the host the gradients of a step wait for the update; the device holds them until they are copied.
    wanted = {"device": gib * (2 + (2 if on_host else 4 * size)), "host": gib * 4 * size if on_host else 0.0}
    there = {"device": _device_gib(setting), "host": host_gib()}
    short = [name for name, need in wanted.items() if need > ROOM * there[name]]
    return "; ".join(f"needs {wanted[name]:.0f} GiB of {name} memory, has {there[name]:.0f}" for name in short)


def _device_gib(setting: Setting) -> float:
    if setting.device == "cpu":
        return host_gib()
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30


def trains(records: Mapping[str, Record]) -> bool | None:
    """Whether a full-length row went through; None where none was tried."""
    tried = [record["status"] for record in records.values() if record["status"] not in ("left out", "no time")]
    return "done" in tried if tried else None


def part(records: Mapping[str, Record]) -> str:
    """The page's table."""
    lines = []
    for name, record in records.items():
        if record["status"] != "done":
            lines.append([name, record.get("why", record["status"])[:60], "", "", ""])
            continue
        numbers = (record["tokens_per_second"], record["step_time_s"], record["peak_gib"])
        share = "-" if record.get("mfu") is None else f"{record['mfu']:.1%}"
        lines.append([name, f"{numbers[0]:,.0f}", f"{numbers[1]:.2f}", share, f"{numbers[2]:.1f}"])
    return table(["", "tokens/s", "s per step", "MFU", "peak, GiB"], lines)


def _measure(setting: Setting, fields: Mapping[str, Any], length: int, _: float) -> Record:
    steps = WARM_UP + (1 if setting.is_tiny else 2)
    recipe = recipe_of(setting, SHAPE, fields, global_size=1, micro_size=1, steps=steps, length=length)
    return measure_training(recipe, setting.place(SHAPE))
