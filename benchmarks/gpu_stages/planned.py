"""What the plan of a run says that tensors hold at most and that a step takes, against what the run measures.

The plan is the one that every run makes before it loads its weights, from the device's listed rates. Memory is
torch.cuda.max_memory_allocated over all steps; time is the mean step after the first two.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.large import CHECKPOINTED, lacking_memory
from gpu_stages.setting import Setting, problem_of, recipe_of
from gpu_stages.training import WARM_UP, measure_training

SMALL = {"precision.master_dtype": "bf16", "precision.state_dtype": "bf16"}
ON_HOST = {"parallel.offload_optimizer": "cpu"}
ADAPTERS = {"tuning": {"name": "lora", "rank": 16}}
PLAIN = {"model.kernels": "none"}
ACCURACY = 0.03
"""Median relative error of the planned peaks that is asked for."""


@dataclass(frozen=True)
class Case:
    """One run."""

    shape: str
    micro: int
    """Sequences of a micro-batch."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    part: float = 1.0
    """Of the usual sequence length."""
    accumulation: int = 1


CASES = {
    "0.2B": Case("0.2B", 2),
    "0.2B, fp32, ZeRO-0": Case("0.2B", 1, {"precision.dtype": "fp32", "parallel.zero_stage": 0}),
    "0.2B, ZeRO-3, two micro-batches": Case("0.2B", 2, {"parallel.zero_stage": 3}, accumulation=2),
    "1B, sdpa with a mask": Case("1B", 2, {"model.attention": "sdpa"}, part=0.5),
    "1B": Case("1B", 4),
    "1B, fused kernels": Case("1B", 4, {"model.kernels": "liger"}),
    "1B, ZeRO-3, checkpointing": Case("1B", 8, {"parallel.zero_stage": 3, **CHECKPOINTED}),
    "1B, ZeRO-1, rows of 256 tokens": Case("1B", 32, {"parallel.zero_stage": 1, "data.packing": False}, part=1 / 16),
    "1B, LoRA": Case("1B", 4, ADAPTERS),
    "1B, DPO with LoRA": Case("1B", 1, {**ADAPTERS, "task": {"name": "dpo"}}),
    "3B, bf16 states": Case("3B", 2, SMALL),
    "3B, checkpointing, tiled MLP": Case("3B", 4, {**CHECKPOINTED, "model.mlp_tiles": 8}),
    "3B, layer inputs on the host": Case("3B", 8, {**CHECKPOINTED, "model.activation_offload": True}),
    "8B, LoRA": Case("8B", 1, ADAPTERS),
    "8B, LoRA, checkpointing": Case("8B", 4, {**ADAPTERS, **CHECKPOINTED}),
    "8B, bf16 states, checkpointing": Case("8B", 2, {**SMALL, **CHECKPOINTED}),
    "1B, optimizer on the host": Case("1B", 2, ON_HOST),
}
"""Attention by document and no fused kernels where nothing else is said."""

REHEARSED = ("0.2B", "1B, ZeRO-3, checkpointing", "1B, DPO with LoRA")


def rows(setting: Setting) -> list[Row]:
    """A row per case; of a rehearsal, in which all models are the same, a few."""
    names = REHEARSED if setting.is_tiny else CASES
    return [
        Row(name, functools.partial(_measure, setting, CASES[name]), _lacking(setting, CASES[name])) for name in names
    ]


def _lacking(setting: Setting, case: Case) -> str:
    if case.fields.get("model.kernels") == "liger" and setting.device != "cuda":
        return "needs a CUDA device"
    return "" if "tuning" in case.fields else lacking_memory(setting, case.shape, case.fields)


def _measure(setting: Setting, case: Case, _: float) -> Record:
    fields = {**PLAIN, **case.fields}
    if case.fields.get("task", {}).get("name") == "dpo":
        fields["data.train"] = str(problem_of(setting) / "pairs.jsonl")
    micro = 1 if setting.is_tiny else case.micro
    recipe = recipe_of(
        setting,
        case.shape,
        fields,
        global_size=micro * case.accumulation,
        micro_size=micro,
        steps=WARM_UP + 3,
        length=round(setting.length * case.part),
    )
    return measure_training(recipe, setting.place(case.shape), plans=True)


def errors(records: Mapping[str, Record], measured: str, planned: str) -> list[float]:
    """Relative errors of the plans."""
    return [
        record[planned] / record[measured] - 1.0
        for record in records.values()
        if record.get(planned) and record.get(measured)
    ]


def accuracy(records: Mapping[str, Record]) -> float | None:
    """How near the median plan comes to the measured peak: 1 less its relative error."""
    found = [abs(error) for error in errors(records, "peak_gib", "planned_gib")]
    return 1.0 - statistics.median(found) if found else None


def part(records: Mapping[str, Record]) -> str:
    """The page's table."""
    lines = []
    for name, record in records.items():
        if not record.get("planned_gib"):
            lines.append([name, record.get("why", record["status"])[:60], "", "", "", "", ""])
            continue
        cells = []
        for planned, measured in (("planned_gib", "peak_gib"), ("planned_s", "step_time_s")):
            if not record.get(planned):
                cells += ["", "", ""]
                continue
            error = record[planned] / record[measured] - 1.0
            cells += [f"{record[planned]:.2f}", f"{record[measured]:.2f}", f"{error:+.1%}"]
        lines.append([name, *cells])
    header = ["", "GiB planned", "measured", "error", "s per step planned", "measured", "error"]
    said = []
    for what, measured, planned in (("Memory", "peak_gib", "planned_gib"), ("Time", "step_time_s", "planned_s")):
        found = [abs(error) for error in errors(records, measured, planned)]
        if found:
            said.append(f"{what}: median error {statistics.median(found):.1%}, worst {max(found):.1%}.")
    return "\n\n".join([table(header, lines), " ".join(said)])
