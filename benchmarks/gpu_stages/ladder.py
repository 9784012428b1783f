"""The ladder: full fine-tuning of a 1B and a 3B shape on packed chats, each lever switched on on top of those before."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.levers import Lever, lacking
from gpu_stages.setting import Setting, recipe_of
from gpu_stages.training import WARM_UP, measure_training, profile_training

TARGET = 0.5
"""Share of the device's peak (MFU) that the last rung should reach."""

BASELINE = Lever("baseline: sdpa with a mask", {"model.attention": "sdpa", "model.kernels": "none"})
LEVERS = (
    Lever("+ attention by document", {"model.attention": "varlen"}),
    Lever("+ fused kernels", {"model.kernels": "liger"}, "liger"),
    Lever("+ compiled layers, no fused kernels", {"model.compile": True, "model.kernels": "none"}, "cuda"),
    Lever("+ bf16 masters and states", {"precision.master_dtype": "bf16", "precision.state_dtype": "bf16"}),
    Lever("+ fp8 matrix products", {"precision.dtype": "fp8"}, "fp8"),
)

SIZES = {"1B": (8, 4), "3B": (4, 1)}
"""Shape -> packed sequences per step and per micro-batch."""

PROFILE = "kernels of the last rung"


def rows(setting: Setting) -> list[Row]:
    """All rungs of one shape, its profile, then the next shape."""
    return [row for shape in SIZES for row in _rungs(setting, shape)]


def _rungs(setting: Setting, shape: str) -> list[Row]:
    fields: Mapping[str, Any] = BASELINE.fields
    found = [Row(f"{shape} {BASELINE.name}", functools.partial(_measure, setting, shape, fields))]
    for lever in LEVERS:
        missing = lacking(lever, setting.device)
        rung = {**fields, **lever.fields}
        found.append(Row(f"{shape} {lever.name}", functools.partial(_measure, setting, shape, rung), missing))
        fields = fields if missing else rung
    return [*found, Row(f"{shape} {PROFILE}", functools.partial(_profile, setting, shape, fields))]


def mfu(records: Mapping[str, Record], shape: str) -> float | None:
    """The best share of the device's peak that a rung of `shape` has reached."""
    values = [record["mfu"] for name, record in records.items() if name.startswith(shape) and record.get("mfu")]
    return max(values, default=None)


def part(records: Mapping[str, Record]) -> str:
    """The page's tables: rungs, then kernels."""
    lines = []
    for name, record in records.items():
        if name.endswith(PROFILE):
            continue
        values = [record.get(key) for key in ("tokens_per_second", "tflops_per_device", "mfu", "peak_gib")]
        if values[0] is None:
            lines.append([name, record["status"], "", "", ""])
            continue
        shown = [f"{values[0]:,.0f}", *(_cell(values[1], ".0f"), _cell(values[2], ".1%"), _cell(values[3], ".1f"))]
        lines.append([name, *shown])
    profiles = [f"### {name}\n\n{kernels(record)}" for name, record in records.items() if "top" in record]
    return "\n\n".join([table(["", "tokens/s", "TFLOPS", "MFU", "peak, GiB"], lines), *profiles])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def kernels(record: Record) -> str:
    """A profile as a table."""
    lines = [
        [f"`{name}`", str(calls), f"{milliseconds:.1f}", f"{share:.1%}"]
        for name, calls, milliseconds, share in record["top"]
    ]
    idle = "unknown" if record["idle"] is None else f"{record['idle']:.1%}"
    return f"{table(['', 'calls', 'ms', 'of busy time'], lines)}\n\nNo kernel ran in {idle} of the time."


def _recipe(setting: Setting, shape: str, fields: Mapping[str, Any]) -> Any:
    global_size, micro_size = (2, 1) if setting.is_tiny else SIZES[shape]
    steps = WARM_UP + (2 if setting.is_tiny else 5)
    return recipe_of(setting, shape, fields, global_size=global_size, micro_size=micro_size, steps=steps)


def _measure(setting: Setting, shape: str, fields: Mapping[str, Any], _: float) -> Record:
    return measure_training(_recipe(setting, shape, fields), setting.place(shape))


def _profile(setting: Setting, shape: str, fields: Mapping[str, Any], _: float) -> Record:
    return profile_training(_recipe(setting, shape, fields), setting.place(shape), setting.device)
