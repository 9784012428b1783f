"""Full fine-tuning of an 8B shape on one device, in the formats and places of its states that fit here.

States are Adam's two moments. Masters are bf16, and so are states, or 8-bit ones; on the host both are fp32 where
DeepSpeed's Adam kernel cannot be built, which alone keeps them in bf16 there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.levers import Lever, lacking
from gpu_stages.machine import host_gib
from gpu_stages.setting import Setting, recipe_of
from gpu_stages.training import WARM_UP, measure_training

SHAPE = "8B"
CHECKPOINTED = {"model.activation_checkpointing": True}
WEIGHT, MOMENTS = 2, {"fp32": 8, "bf16": 4, "8bit": 2}
"""Bytes per parameter: of bf16 weights; of both moments, by format. Gradients and masters are fp32, or bf16 alike."""

ROOM, SPARED = 0.92, 0.4
"""Share of a memory that states may take; the same where most of it is for activations."""


def rows(setting: Setting) -> list[Row]:
    """Two lengths for each way to keep the states."""
    found = []
    for place, lever in ways(setting).items():
        fields = CHECKPOINTED | lever.fields
        missing = lacking(lever, setting.device) or lacking_memory(setting, SHAPE, fields)
        for length in (setting.length // 8, setting.length):
            name = f"{SHAPE}, {length:,} tokens, {place}"
            found.append(Row(name, functools.partial(_measure, setting, fields, length), missing))
    return found


def ways(setting: Setting) -> dict[str, Lever]:
    """How states may be kept, fastest first."""
    small = {"precision.master_dtype": "bf16", "precision.state_dtype": "bf16"}
    # A rehearsal builds no kernel.
    kernel = not lacking(Lever("", {}, "compiler"), setting.device)
    by_kernel: dict[str, Any] = {**small, "optimizer.implementation": "deepspeed"} if kernel else {}
    return {
        "bf16 states": Lever("", small),
        "8-bit states": Lever("", {**small, "precision.state_dtype": "8bit"}, "torchao"),
        f"{'bf16' if kernel else 'fp32'} states on the host": Lever(
            "", {**by_kernel, "parallel.offload_optimizer": "cpu"}
        ),
    }


def roomiest(setting: Setting, shape: str) -> tuple[dict[str, Any], str]:
    """Fields of the way that leaves most of the device to a long sequence, and what is missing where none fits."""
    missing = ""
    *on_device, on_host = ways(setting).values()
    small = [lever for lever in on_device if not lacking_memory(setting, shape, lever.fields, room=SPARED)]
    for lever in (*small, on_host, *on_device):
        missing = lacking(lever, setting.device) or lacking_memory(setting, shape, lever.fields)
        if not missing:
            return dict(lever.fields), ""
    return {}, missing


def lacking_memory(setting: Setting, shape: str, fields: Mapping[str, Any], room: float = ROOM) -> str:
    """Which memory is too small for the states of `shape` to take at most `room` of it; empty where there is enough."""
    gib = setting.parameters(shape) / 2**30
    gradient = 2 if fields.get("precision.master_dtype") == "bf16" else 4
    states = gradient + MOMENTS[fields.get("precision.state_dtype", "fp32")]
    if "parallel.offload_optimizer" in fields:
        # Gradients go to the host as they come, and wait there for the update.
        wanted = {"device": gib * (WEIGHT + WEIGHT), "host": gib * (gradient + states)}
    else:
        wanted = {"device": gib * (WEIGHT + gradient + states), "host": 0.0}
    there = {"device": _device_gib(setting), "host": host_gib()}
    short = [name for name, need in wanted.items() if need > room * there[name]]
    return "; ".join(f"needs {wanted[name]:.0f} GiB of {name} memory, has {there[name]:.0f}" for name in short)


def _device_gib(setting: Setting) -> float:
    if setting.device == "cpu":
        return host_gib()
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30


def trains(records: Mapping[str, Record]) -> bool | None:
    """Whether a row went through; None where none was tried."""
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
