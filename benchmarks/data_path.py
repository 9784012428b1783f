"""Speed of the data path alone against what training consumes, and how full packed sequences are.

First use: rows through chat template, tokenizer and loss mask into the store on disk. Every start: the examples'
lengths packed into sequences. Every step: the store's examples collated into the tensors of micro-batches, in the
training thread, or ahead of it in a background thread; here one thread makes the whole global batch, in training each
rank makes only its share. From a stream nothing is stored: tokens are made while training, by each rank for itself or
by all ranks together, a part of the rows each. Training is the quick start's recipe (SmolLM2-135M, ZeRO-2), measured
for a few steps on this machine, all ranks together: on faster devices it consumes more, so compare the rates with your
own. Rates count tokens of the examples, never padding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.page import number_format, parser, publish, table
from harness.ranks import default_world_size, is_rank, measure, report, shared_folder

FASTER, FULL = 10.0, 0.98
"""Targets: tokens per second of the data path over those of training, and the share that is not padding."""
LENGTHS = (512, 1024, 2048)
SETS = {"python-docstrings": "instructions (chats)", "python-packages": "classification texts"}


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--steps", type=int, help="training steps that count (default 5; 1 with --tiny)")
    options = made.parse_args(arguments)
    options.steps = options.steps or (1 if options.tiny else 5)
    if is_rank():
        report(training_rank(options))
        return
    world_size = 1 if options.tiny else default_world_size()
    measured = measure(__file__, arguments, world_size)[0]
    training = measured["training"]
    rates = {
        "from a stream, each rank for itself": measured["alone"],
        f"from a stream, {world_size} rank(s) together": measured["together"],
        "first use: template, tokenizer, store": first_use(options),
        "every start: packing": every_start(),
        "every step, in the training thread": every_step(options, prefetch=0),
        "every step, in the background": every_step(options, prefetch=4),
    }
    rows = [["training, all ranks", f"{training:,.0f}", "1"]]
    rows += [[name, f"{rate:,.0f}", f"**{rate / training:,.0f}**"] for name, rate in rates.items()]
    speed = table(["", "tokens/s", "times training"], rows)
    full = [[about, *(f"{packed(name, length):.1%}" for length in LENGTHS)] for name, about in SETS.items()]
    packing = table(["not padding, at a sequence length of", *map(str, LENGTHS)], full)
    targets = f"Targets: at least {FASTER:.0f} times training; at least {FULL:.0%} of the tokens not padding."
    setting = f"Training: {world_size} rank(s), {options.steps} steps, {number_format()}."
    publish(options, "The data path", [str(__doc__).strip(), speed, packing, targets, setting])


def training_rank(options: argparse.Namespace) -> dict[str, float]:
    """One rank of the quick start; tokens per second of all ranks in training, and of reading the same rows as a stream."""
    from toolkit.engine import process
    from toolkit.train.run import RunOptions, train

    me = process.from_environment()
    folder = shared_folder() / "run"
    process.start(me)
    train(build_recipe(options, me.world_size), RunOptions("data_path", folder), keep_group=True)
    streams = {name: stream(options, me, name == "together") for name in ("alone", "together")}
    process.barrier()
    process.stop()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record][1:]
    rate = sum(record["tokens"] for record in records) / sum(record["step_time_s"] for record in records)
    return {"training": float(rate), **streams}


def stream(options: argparse.Namespace, me: Any, together: bool) -> float:
    """Tokens per second of the global batch, with the instruction set read as a stream, twice through its rows."""
    from toolkit.engine import process
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    recipe = build_recipe(options, me.world_size)
    data = recipe.data.model_copy(update={"streaming": True})
    batches = prepare_inputs(
        recipe.model_copy(update={"data": data}), me.data_rank, me.mesh.data, Display(is_main=False)
    ).batches
    batches.exchange = process.GlooExchange() if together else None
    process.barrier()
    began, tokens = time.perf_counter(), 0
    for batch in batches.iterate(0, 10**9):
        tokens += batch.num_tokens
        if batch.epoch >= (1 if options.tiny else 2):
            break
    return tokens / (time.perf_counter() - began)


def build_recipe(options: argparse.Namespace, world_size: int, **changes: Any) -> Any:
    """The quick start without evaluation and export; a model of one narrow layer with --tiny."""
    from toolkit import Batch, Checkpoint, Data, Model, Optimizer, Parallel, Precision, Recipe

    tiny = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = Model(path="smollm2-135m-instruct", weights="random", config={**tiny, **heads})
    sections: dict[str, Any] = {
        "model": model if options.tiny else Model(path="smollm2-135m-instruct"),
        "data": Data(train="python-docstrings", max_examples=400 if options.tiny else None),
        "batch": Batch(global_size=2 * world_size, micro_size=1, sequence_length=512),
        "optimizer": Optimizer(learning_rate=1e-4),
        "precision": Precision(dtype="auto"),
        "parallel": Parallel(zero_stage=2),
        "checkpoint": Checkpoint(export=False),
        "steps": options.steps + 1,
    }
    return Recipe(**{**sections, **changes})


def first_use(options: argparse.Namespace) -> float:
    """Tokens per second of encoding the instruction set into a new store."""
    from toolkit.data.encoding import Encoder
    from toolkit.data.reading.sources import open_source
    from toolkit.data.sets.catalog import resolve
    from toolkit.data.store import prepare
    from toolkit.models.loading import load_tokenizer
    from toolkit.tasks.language.causal_lm import CausalLMTask

    recipe = build_recipe(options, 1)
    task = CausalLMTask(recipe.task, load_tokenizer(recipe.model))
    with tempfile.TemporaryDirectory(prefix="data_path_") as folder:
        place = Path(folder)
        limit = 100 if options.tiny else None
        rows = open_source(resolve("python-docstrings"), split="train", cache_dir=place, max_examples=limit).rows
        began = time.perf_counter()
        encoder = Encoder(task.encode, 512, "truncate")
        store = prepare(rows, encoder, cache_dir=place, fingerprint="benchmark")
        return store.num_tokens / (time.perf_counter() - began)


def every_start() -> float:
    """Tokens per second of packing the instruction set, median of several times."""
    from toolkit.data.packing import best_fit

    store = _batches("python-docstrings", 512).store

    def once() -> int:
        best_fit(store.lengths, 512)
        return int(store.num_tokens)

    return _median_rate(once, 5)


def every_step(options: argparse.Namespace, prefetch: int) -> float:
    """Tokens per second of iterating over stored batches, median of several passes of 100 steps."""
    batches = _batches("python-docstrings", 512)
    steps, passes = (5, 1) if options.tiny else (100, 7)

    def one_pass() -> int:
        return sum(batch.num_tokens for batch in batches.iterate(0, steps, prefetch=prefetch))

    return _median_rate(one_pass, passes)


def _median_rate(work: Callable[[], int], times: int) -> float:
    rates = []
    for _ in range(times):
        began = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - began))
    return statistics.median(rates)


def packed(name: str, length: int) -> float:
    """Share of the tokens that is not padding in the sequences of the data set `name`."""
    from toolkit.data.packing import efficiency

    batches = _batches(name, length)
    return efficiency(batches.store.lengths, batches.sequences, length)


def _batches(name: str, length: int) -> Any:
    from toolkit import Batch, Data
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    plain = build_recipe(argparse.Namespace(tiny=False, steps=1), 1)
    recipe = plain.model_copy(
        update={"data": Data(train=name), "batch": Batch(global_size=4, micro_size=1, sequence_length=length)}
    )
    return prepare_inputs(recipe, 0, 1, Display(is_main=False)).batches


if __name__ == "__main__":
    main(sys.argv[1:])
