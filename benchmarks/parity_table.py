"""How far the loss curves of every strategy are from plain single-process PyTorch.

A tiny Llama of 4 layers is trained for 20 steps on packed chats of very different lengths, with the loss on the answers,
weight decay, warm-up, decay and gradient clipping that bites, through the toolkit's own `train`, on the same global
batches of 8 sequences: ZeRO stages and offloads as 1 and 2 ranks with 1 and 4 micro-batches per rank and step; pipeline
(pp), tensor (tp) and sequence (sp) parallelism and their mixtures with data parallelism (dp) with 4 micro-batches per
replica. A tiny BERT learns to classify padded texts, with the same steps, under ZeRO. Each number is the largest
relative deviation of any step's loss, or gradient norm, in any of these layouts from the reference
(toolkit/parity/reference.py, which uses neither DeepSpeed nor the toolkit's engine, loss or schedule) on the same
micro-batches, in the same number format with fp32 master weights. "Spread" is the largest relative deviation of any two
strategies of one layout from each other.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' reference and their server, which forks the ranks
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from harness.page import parser, publish, table, tracked  # noqa: E402

DTYPES = ("fp32", "bf16", "fp16")
"""Measured as far as the processor computes in them."""
TASKS = {"causal_lm": "Causal language modelling, packed", "sequence_classification": "Sequence classification, padded"}
STEPS = 20
ACCUMULATION = 4
LAYERS = 4
"""Enough for four pipeline stages."""

Curves = dict[str, list[float]]
""""loss" and "grad_norm" of each step."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = parser(__doc__, __file__).parse_args(arguments)
    from tests.processor import computes_in

    parts = [str(__doc__).strip()]
    left_out = [dtype for dtype in DTYPES if not computes_in(dtype)]
    with tempfile.TemporaryDirectory(prefix="parity_table_") as folder:
        os.environ["TOOLKIT_CACHE"] = str(Path(folder) / "cache")
        for task in TASKS:
            dtypes = DTYPES[:1] if options.tiny else [dtype for dtype in DTYPES if dtype not in left_out]
            found = {dtype: deviations(options, task, dtype, Path(folder)) for dtype in dtypes}
            header = ["", *(f"{dtype} {what}" for dtype in found for what in ("loss", "grad norm"))]
            names = list(next(iter(found.values())))
            rows = [[name, *(f"{value:.1e}" for dtype in found for value in found[dtype][name])] for name in names]
            parts += [f"## {TASKS[task]}", table(header, rows)]
    if left_out:
        parts.append(f"Not measured: {', '.join(left_out)}, in which this processor does not compute.")
    publish(options, "Parity with plain PyTorch", parts)


def deviations(options: argparse.Namespace, task: str, dtype: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Strategy -> largest relative deviation of loss and gradient norm; the last entry is the spread."""
    from tests.distributed import run_distributed
    from tests.parity.strategies import micro_size, worlds
    from tests.parity.worker import reference_curve
    from toolkit.parity.strategies import STRATEGIES

    whole = {name: strategy for name, strategy in STRATEGIES.items() if strategy.ranks_per_replica == 1}
    strategies = dict(list(whole.items())[:2]) if options.tiny else STRATEGIES if task == "causal_lm" else whole
    every_world = sorted({size for strategy in strategies.values() for size in worlds(strategy)})
    layouts = [(1, 1)] if options.tiny else list(itertools.product(every_world, (1, ACCUMULATION)))
    steps = 4 if options.tiny else STEPS
    problem = build_problem(task, folder / task)
    worst: dict[str, tuple[float, float]] = dict.fromkeys([*strategies, "spread"], (0.0, 0.0))
    references: dict[int, Curves] = {}
    for world_size, accumulation in tracked(layouts, f"{task}, {dtype}"):
        chosen = {
            name: strategy
            for name, strategy in strategies.items()
            if world_size in worlds(strategy) and (strategy.ranks_per_replica == 1 or accumulation == ACCUMULATION)
        }
        sizes = {name: micro_size(strategy, world_size, accumulation) for name, strategy in chosen.items()}
        # The same micro-batches: in 16 bits, how many rows share a matrix product already moves the last digits.
        for size in set(sizes.values()) - references.keys():
            (curve,) = run_distributed(reference_curve, 1, build_recipe(task, problem, dtype, steps, size, {}))
            references[size] = {"loss": curve.losses, "grad_norm": curve.norms}
        recipes = [
            build_recipe(task, problem, dtype, steps, sizes[name], strategy.fields) for name, strategy in chosen.items()
        ]
        place = folder / f"{task}-{dtype}-{world_size}-{accumulation}"
        curves = dict(zip(chosen, train_all(recipes, place, world_size), strict=True))
        for name, curve in curves.items():
            worst[name] = _larger(worst[name], _distance(curve, references[sizes[name]]))
        for one, other in itertools.combinations(curves.values(), 2):
            worst["spread"] = _larger(worst["spread"], _distance(one, other))
    return worst


def _larger(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


def _distance(ours: Curves, wanted: Curves) -> tuple[float, float]:
    from toolkit.parity.report import deviation

    return deviation(ours["loss"], wanted["loss"]), deviation(ours["grad_norm"], wanted["grad_norm"])


def train_all(recipes: Sequence[Any], folder: Path, world_size: int) -> list[Curves]:
    """Train the recipes one after the other in the same ranks."""
    from tests.distributed import run_distributed
    from tests.parity.worker import run_recipe

    runs = [(recipe, str(folder / str(number)), None) for number, recipe in enumerate(recipes)]
    records = run_distributed(run_recipe, world_size, runs, timeout_s=600)[0]
    return [{key: [record[key] for record in run] for key in ("loss", "grad_norm")} for run in records]


def build_recipe(
    task: str, problem: tuple[Path, Path], dtype: Any, steps: int, micro_size: int, parallel: Mapping[str, Any]
) -> Any:
    """The recipe of the parity tests, in one number format, strategy and layout."""
    from tests.parity.strategies import GLOBAL_SIZE, recipe
    from toolkit import Batch, Parallel, Precision

    return recipe(
        task,
        *problem,
        batch=Batch(global_size=GLOBAL_SIZE, micro_size=micro_size, sequence_length=128),
        # No overflow in the first steps: the reference does not skip any.
        precision=Precision(dtype=dtype, **({"initial_scale_power": 8} if dtype == "fp16" else {})),
        parallel=Parallel(**parallel),
        steps=steps,
    )


def build_problem(task: str, folder: Path) -> tuple[Path, Path]:
    """The tests' model for `task`, in fp32 with random weights and a small tokenizer, and their data."""
    from transformers.utils.logging import disable_progress_bar

    from tests import tiny

    model, data = folder / "model", folder / "rows.jsonl"
    if data.exists():
        return model, data
    disable_progress_bar()
    folder.mkdir()
    if task == "causal_lm":
        tokenizer = tiny.byte_tokenizer()
        tiny.save(tiny.llama(tokenizer, LAYERS), tokenizer, model)
        tiny.write_lines(data, tiny.chats())
    else:
        tokenizer = tiny.wordpiece_tokenizer()
        tiny.save(tiny.bert(tokenizer), tokenizer, model)
        tiny.write_lines(data, tiny.openings())
    return model, data


if __name__ == "__main__":
    main(sys.argv[1:])
