"""Modules of one's own against what needs no model: popularity for a recommender, frequency for hidden residues.

Each line trains a recipe of recipes/ as a user would, in a process of its own, on data made anew with each seed, and
takes the figures of its last evaluation. The baseline is measured on the same held-out examples, hidden residues and
drawn negatives by the same code, with counts of the training rows in the place of the module.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.page import parser, publish, table, tracked
from torch import Tensor

from toolkit.data.batches import evaluation_batches
from toolkit.examples.residues import RESIDUES, MaskedResidues
from toolkit.examples.two_tower import TwoTower
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe
from toolkit.train.inputs import prepare_inputs
from toolkit.train.progress import Display

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 3600.0
MICRO_SIZE = 64


def popular(task: TwoTower) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores of items by how often they were taken: the logarithm of their counts, one added."""
    counts = torch.ones(task.items)
    counts += torch.bincount(torch.tensor([row["item"] for row in task.rows("train")]), minlength=task.items)
    return lambda user, items: counts.log()[items].expand(len(user), -1)


def frequent(task: MaskedResidues) -> Callable[[Tensor], Tensor]:
    """Every residue by how frequent it is."""
    text = "".join(row["sequence"] for row in task.rows("train"))
    counts = torch.tensor([text.count(letter) for letter in RESIDUES], dtype=torch.float32)
    return lambda ids: (counts / counts.sum()).log().expand(*ids.shape, -1)


@dataclass(frozen=True)
class Figure:
    """A metric, and how much better than the baseline it has to be with every seed."""

    name: str
    least: float
    """Times the baseline's: at least where above 1, at most where below."""

    def reached(self, found: float, baseline: float) -> bool:
        """Whether `found` is that much better."""
        return found >= self.least * baseline if self.least > 1 else found <= self.least * baseline


@dataclass(frozen=True)
class Line:
    """One recipe."""

    recipe: str
    baseline: Callable[[Any], Any]
    """The task -> what stands in the place of its module."""
    figures: tuple[Figure, ...]
    tiny: dict[str, Any]
    """Arguments of the task with --tiny."""


TASKS = {
    "recommender, popularity": Line(
        "recommend_twotower_zero2",
        popular,
        (Figure("recall_at_10", 2.0), Figure("ndcg_at_10", 2.0)),
        {"users": 40, "items": 40, "width": 8},
    ),
    "residues, frequency": Line(
        "mlm_residues_zero1",
        frequent,
        (Figure("accuracy", 2.0), Figure("perplexity", 0.7)),
        {"families": 3, "sequences": 40, "held_out": 10, "width": 16},
    ),
}
"""By what is learned, and the baseline."""


def main(arguments: list[str]) -> None:
    """Measure and publish; ends with an error where a module is not clearly better than its baseline."""
    made = parser(__doc__, __file__)
    made.add_argument("--seeds", type=int, help="runs of each task (default 3; 1 with --tiny)")
    options = made.parse_args(arguments)
    seeds = range(options.seeds or (1 if options.tiny else 3))
    rows, missed = [], []
    for name, seed in tracked([(name, seed) for name in TASKS for seed in seeds], "runs"):
        line = TASKS[name]
        given = {**(line.tiny if options.tiny else {}), "seed": seed}
        started = time.perf_counter()
        found, seconds = trained(line, given, seed, options), time.perf_counter() - started
        others = untrained(line, given)
        for figure in line.figures:
            value, other = found[figure.name], others[figure.name]
            print(f"{name}, seed {seed}: {figure.name} {value:.4f}, the baseline {other:.4f}", flush=True)
            rows.append((name, figure, seed, value, other, seconds))
            if not figure.reached(value, other):
                missed.append(f"{name}, {figure.name}, seed {seed}")
    publish(
        options,
        "Modules of one's own",
        [str(__doc__).strip(), table(HEADER, list(lines(rows))), ABOUT.format(seeds=len(seeds))],
    )
    if missed and not options.tiny:
        sys.exit(f"not clearly better than the baseline: {'; '.join(missed)}")


HEADER = ["", "metric", "module", "baseline", "times", "least favourable seed", "has to be", "seconds"]
ABOUT = (
    "Means over {seeds} seeds, of the data and of training alike; how many times the baseline's the figure is, and with the \
least favourable seed; seconds are of one run, its start included."
)


def lines(rows: Sequence[tuple[str, Figure, int, float, float, float]]) -> Iterator[list[str]]:
    """The lines of the table: means over the seeds."""
    for name, figure in dict.fromkeys((row[0], row[1]) for row in rows):
        mine = [row for row in rows if row[:2] == (name, figure)]
        value, other = (statistics.mean(row[place] for row in mine) for place in (3, 4))
        times = [row[3] / row[4] if row[4] else float("inf") for row in mine]
        worst = min(times) if figure.least > 1 else max(times)
        yield [
            name,
            figure.name,
            f"{value:.3f}",
            f"{other:.3f}",
            f"{value / other if other else float('inf'):.2f}",
            f"{worst:.2f}",
            f"at {'least' if figure.least > 1 else 'most'} {figure.least:g}",
            f"{statistics.mean(row[5] for row in mine):.0f}",
        ]


def trained(line: Line, given: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, float]:
    """The last evaluation of a run of the recipe, in one process."""
    with tempfile.TemporaryDirectory(prefix="custom_tasks_") as folder:
        output = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "recipes" / f"{line.recipe}.py"), "--seed", str(seed)]
        command += ["--task.arguments", json.dumps(given), "--tracking.tensorboard", "false"]
        command += ["--output_dir", str(output)]
        if options.tiny:
            command += ["--steps", "2", "--batch.global_size", "8", "--batch.micro_size", "8"]
            command += ["--checkpoint.export", "false"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        records = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        found: dict[str, float] = [record["eval"] for record in records if "eval" in record][-1]
        return found


def untrained(line: Line, given: dict[str, Any]) -> dict[str, float]:
    """The baseline's figures on the examples of that evaluation."""
    recipe = load_recipe(ROOT / "recipes" / f"{line.recipe}.py")
    task = recipe.task.model_copy(update={"arguments": given})
    plain = Recipe(model=recipe.model, data=recipe.data, task=task, batch=recipe.batch, steps=1)
    inputs = prepare_inputs(plain, 0, 1, Display(is_main=False))
    assert inputs.held_out is not None
    stand_in = line.baseline(inputs.task.own)  # type: ignore[attr-defined]
    sums: dict[str, float] = {}
    batches = evaluation_batches(
        inputs.held_out, inputs.held_out_sequences, inputs.task.collate, 0, 1, MICRO_SIZE, kind=inputs.task
    )
    with torch.no_grad():
        for batch in batches:
            for name, value in inputs.task.evaluate(stand_in, batch.tensors).items():
                sums[name] = sums.get(name, 0.0) + value
    return inputs.task.metrics(sums)


if __name__ == "__main__":
    main(sys.argv[1:])
