"""Ragged chats on a 1B shape: the toolkit against the Hugging Face Trainer, both with DeepSpeed ZeRO-2 in bf16.

Both train the same chats with the same DeepSpeed configuration and, on average, as many chats per step, taking turns.
The Trainer pads each micro-batch to its longest chat; of 8, 4, 2 and 1 chats it takes the most that fit. The toolkit
packs. Speed counts tokens of chats, never padding.
"""

from __future__ import annotations

import functools
import shutil
import statistics
from collections.abc import Mapping
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.setting import Setting, recipe_of
from gpu_stages.training import WARM_UP, measure_training, start_process

TARGET = 2.0
SEQUENCES, MICRO = 8, 4
"""Packed sequences per step and per micro-batch."""

CHATS = (8, 4, 2, 1)
"""Micro-batches that the Trainer tries, largest first."""


def rows(setting: Setting) -> list[Row]:
    """Two runs of each side in turns, and one of the Trainer with chats of like length together."""
    ours = functools.partial(_toolkit, setting)
    theirs = functools.partial(_trainer, setting, grouped=False)
    return [
        Row("toolkit", ours),
        Row("Trainer", theirs),
        Row("toolkit, again", ours),
        Row("Trainer, again", theirs),
        Row("Trainer, grouped by length", functools.partial(_trainer, setting, grouped=True)),
    ]


def speedup(records: Mapping[str, Record]) -> float | None:
    """Tokens per second of the toolkit over the Trainer's as it comes; medians of the runs of each."""
    sides = [
        [record["tokens_per_second"] for name, record in records.items() if name in (side, f"{side}, again") and record["status"] == "done"]
        for side in ("toolkit", "Trainer")
    ]  # fmt: skip
    return statistics.median(sides[0]) / statistics.median(sides[1]) if all(sides) else None


def part(records: Mapping[str, Record]) -> str:
    """The page's table."""
    lines = []
    for name, record in records.items():
        if record["status"] != "done":
            lines.append([name, record["status"], "", "", ""])
            continue
        full, micro = record.get("full"), record.get("micro_size")
        shown = [f"{record['tokens_per_second']:,.0f}", f"{record['peak_gib']:.1f}"]
        lines.append([name, *shown, "" if full is None else f"{full:.0%}", "" if micro is None else str(micro)])
    found = table(["", "tokens/s", "peak, GiB", "not padding", "chats in a micro-batch"], lines)
    ratio = speedup(records)
    return found if ratio is None else f"{found}\n\nThe toolkit is **{ratio:.2f}x** as fast as the Trainer as it comes."


def _recipe(setting: Setting) -> Any:
    steps = WARM_UP + (2 if setting.is_tiny else 4)
    size = {"global_size": 2, "micro_size": 2} if setting.is_tiny else {"global_size": SEQUENCES, "micro_size": MICRO}
    return recipe_of(setting, "1B", {}, steps=steps, **size)


def _toolkit(setting: Setting, _: float) -> Record:
    recipe = _recipe(setting)
    return measure_training(recipe, setting.place("toolkit")) | {"micro_size": None}


def _trainer(setting: Setting, _: float, *, grouped: bool) -> Record:
    from harness.memory import forget

    from toolkit.engine.out_of_memory import is_out_of_memory

    for chats in CHATS:
        try:
            return _train_by_trainer(setting, chats, grouped=grouped)
        except Exception as error:
            if not is_out_of_memory(error) or chats == CHATS[-1]:
                raise
            print(f"{chats} chats in a micro-batch: out of memory")
            forget(error)
    raise AssertionError("the last one returns or raises")


def _train_by_trainer(setting: Setting, chats: int, *, grouped: bool) -> Record:
    import torch
    from accelerate.state import AcceleratorState
    from harness.engine import configured
    from harness.memory import peak_gib, reset_peak
    from harness.trainer import make_trainer
    from transformers import AutoModelForCausalLM

    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    recipe = _recipe(setting)
    inputs = prepare_inputs(recipe, 0, 1, Display(is_main=True))
    start_process(configured(recipe, 1, inputs.model_config))
    with torch.device(setting.device):  # where random numbers come fastest
        model = AutoModelForCausalLM.from_config(inputs.model_config, dtype=torch.float32)
    per_step = len(inputs.batches.store) / len(inputs.batches.sequences) * recipe.batch.global_size
    accumulation = max(1, round(per_step / chats))
    folder = setting.place("trainer")
    trainer = make_trainer(
        recipe, inputs, model, folder, examples=chats, accumulation=accumulation, world_size=1, grouped=grouped
    )
    reset_peak()
    try:
        trainer.train()
        peak = peak_gib()
    finally:
        trainer.model_wrapped.destroy() if hasattr(trainer.model_wrapped, "destroy") else None
        # accelerate keeps the engine and the number format of the first Trainer of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        shutil.rmtree(folder, ignore_errors=True)
    # The clock starts at the end of the first steps.
    marks, counts = trainer.marks[WARM_UP - 1 :], trainer.counts[WARM_UP * accumulation :]
    tokens, padded, examples = (sum(count[index] for count in counts) for index in range(3))
    return {
        "steps": len(marks) - 1,
        "tokens_per_second": tokens / (marks[-1] - marks[0]),
        "peak_gib": peak,
        "full": tokens / padded,
        "micro_size": chats,
        "chats_per_step": examples / (len(marks) - 1),
    }
