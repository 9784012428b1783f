"""Speed and memory against the Hugging Face Trainer with DeepSpeed, on ragged instruction data.

Both fine-tune SmolLM2-135M-Instruct on the same chats (same template, loss on the answers), with the same DeepSpeed
configuration (ZeRO-2, AdamW, clipping; bf16 where the processor has it), the same number of ranks, micro-batches and, on average, examples per
optimizer step. The Trainer pads each micro-batch to its longest example (DataCollatorForSeq2Seq) and computes all
logits; the toolkit packs examples into full sequences and computes logits only where there is a loss, in chunks.
"Trainer, grouped" is the Trainer with examples of like length put into a batch (train_sampling_strategy), which is
off by default; it begins with the longest examples.

Every run is a set of fresh processes, and the runs take turns. Speed counts tokens of the examples, never padding,
over all steps but the first; memory is the peak of the rank that needs most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from harness.page import number_format, parser, publish, table
from harness.ranks import default_world_size, is_rank, measure, report, shared_folder
from harness.trainer import make_trainer

TARGET = 1.5
SIDES = {"toolkit": "toolkit", "trainer": "Trainer", "grouped": "Trainer, grouped"}
ACCUMULATION = 1
SEQUENCES = 4
"""Packed sequences of 512 tokens in a micro-batch of the toolkit."""

EXAMPLES = 28
"""Examples in a micro-batch of the Trainer: about as many as those hold."""

TINY = 4
"""With --tiny both hold this many times less: the Trainer computes the logits of every token of its micro-batch."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--steps", type=int, help="steps per run that count (default 4; 1 with --tiny)")
    made.add_argument("--rounds", type=int, help="runs of each side (default 2; 1 with --tiny)")
    made.add_argument("--ranks", type=int, help="default: one per GPU, two on a CPU; one with --tiny")
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    options.steps = options.steps or (1 if options.tiny else 4)
    options.sequences, options.examples = (each // (TINY if options.tiny else 1) for each in (SEQUENCES, EXAMPLES))
    if is_rank():
        report(toolkit_rank(options) if options.side == "toolkit" else trainer_rank(options))
        return
    world_size = options.ranks or (1 if options.tiny else default_world_size())
    sides = ["toolkit", "trainer"] if options.tiny else list(SIDES)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(options.rounds or (1 if options.tiny else 2)):
        for side, results in found.items():
            if side == "grouped" and number:
                continue  # once is enough for what is not the default
            results.append(_one_run(measure(__file__, [*arguments, "--side", side], world_size)))
    _publish(options, found, world_size)


def _one_run(ranks: list[dict[str, Any]]) -> dict[str, float]:
    seconds = max(rank["seconds"] for rank in ranks)
    tokens, padded, examples = (sum(rank[key] for rank in ranks) for key in ("tokens", "padded", "examples"))
    memory = max(rank["gib"] for rank in ranks)
    return {"speed": tokens / seconds, "full": tokens / padded, "examples": examples / ranks[0]["steps"], "gib": memory}


def _publish(options: argparse.Namespace, found: dict[str, list[dict[str, float]]], world_size: int) -> None:
    rows = []
    for side, results in found.items():
        speed, full, examples, gib = (
            statistics.median(run[key] for run in results) for key in ("speed", "full", "examples", "gib")
        )
        faster = statistics.median(
            ours["speed"] / run["speed"] for ours, run in zip(found["toolkit"], results, strict=False)
        )
        rows.append([SIDES[side], f"{speed:,.0f}", f"{faster:.2f}", f"{gib:.2f}", f"{full:.1%}", f"{examples:.1f}"])
    header = ["", "tokens/s", "toolkit is faster by", "peak memory, GiB", "not padding", "examples per step"]
    speedup = rows[1][2]
    setting = (
        f"{number_format()}, {world_size} rank(s), {ACCUMULATION} micro-batch(es) per rank and step, {options.sequences} packed sequences or {options.examples} examples each; medians of {len(found['toolkit'])} run(s) of "
        f"{options.steps} steps (one where grouped). Against the Trainer as it comes: **{speedup}x** the tokens per second "
        f"(target: at least {TARGET}x), **{rows[0][3]} GiB** against **{rows[1][3]} GiB**."
    )
    parts = [str(__doc__).strip(), table(header, rows), setting]
    publish(options, "Speed and memory against the Hugging Face Trainer", parts)


def build_recipe(options: argparse.Namespace, world_size: int) -> Any:
    """The run both sides do; the Trainer takes its DeepSpeed configuration, model and data from it."""
    from toolkit import Batch, Checkpoint, Data, Model, Optimizer, Parallel, Precision, Recipe, Schedule

    return Recipe(
        model=Model(
            path="smollm2-135m-instruct", weights="random" if options.tiny else "pretrained", config=_shape(options)
        ),
        data=Data(train="python-docstrings"),
        batch=Batch(
            global_size=ACCUMULATION * options.sequences * world_size, micro_size=options.sequences, sequence_length=512
        ),
        optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.01),
        schedule=Schedule(type="linear"),
        precision=Precision(dtype="auto"),
        parallel=Parallel(zero_stage=2),
        checkpoint=Checkpoint(export=False),
        steps=options.steps + 1,
    )


def _shape(options: argparse.Namespace) -> dict[str, Any]:
    tiny = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    return {**tiny, "num_key_value_heads": 1} if options.tiny else {}


def toolkit_rank(options: argparse.Namespace) -> dict[str, Any]:
    """One rank of a run through `toolkit.train`, its numbers taken from metrics.jsonl."""
    from toolkit.engine import device, process
    from toolkit.train.run import RunOptions, train

    me = process.from_environment()
    recipe = build_recipe(options, me.world_size)
    folder = shared_folder() / "run"
    process.start(me)
    train(recipe, RunOptions("against_trainer", folder), keep_group=True)
    process.barrier()
    process.stop()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record][1:]
    # The records are about all ranks; each rank reports its share.
    total = {key: sum(record[key] for record in records) / me.world_size for key in ("tokens", "samples")}
    padded = len(records) * ACCUMULATION * recipe.batch.micro_size * recipe.batch.sequence_length
    seconds = sum(record["step_time_s"] for record in records)
    return {
        "steps": len(records),
        "seconds": seconds,
        "tokens": total["tokens"],
        "padded": padded,
        "examples": total["samples"],
        "gib": device.peak_memory_gib(),
    }


def trainer_rank(options: argparse.Namespace) -> dict[str, Any]:
    """One rank of a run through transformers.Trainer."""
    from toolkit.engine import device, process
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    me = process.from_environment()
    recipe = build_recipe(options, me.world_size)
    inputs = prepare_inputs(recipe, me.rank, me.world_size, Display(is_main=False))
    process.start(me)  # without a process group the Trainer takes a CPU for the only one
    trainer = make_trainer(
        recipe,
        inputs,
        _model(options, recipe, inputs),
        shared_folder() / "trainer",
        examples=options.examples,
        accumulation=ACCUMULATION,
        world_size=me.world_size,
        grouped=options.side == "grouped",
    )
    trainer.train()
    # The first step is left out: its end is where the clock starts.
    marks, counts = trainer.marks, trainer.counts[ACCUMULATION:]
    tokens, padded, examples = (sum(count[index] for count in counts) for index in range(3))
    seconds = marks[-1] - marks[0]
    measured = {"steps": len(marks) - 1, "seconds": seconds, "tokens": tokens, "padded": padded, "examples": examples}
    measured["gib"] = device.peak_memory_gib()
    process.barrier()
    process.stop()
    return measured


def _model(options: argparse.Namespace, recipe: Any, inputs: Any) -> Any:
    from transformers import AutoModelForCausalLM

    from toolkit.models.assets import resolve

    if options.tiny:
        return AutoModelForCausalLM.from_config(inputs.model_config)
    # As stored it is bf16, which DeepSpeed leaves as it is in an fp32 run, and turns into what a bf16 run computes in.
    return AutoModelForCausalLM.from_pretrained(resolve(str(recipe.model.path)), dtype="float32")


if __name__ == "__main__":
    main(sys.argv[1:])
