"""Every task on real data with real weights: its metric before and after a short training, over several seeds.

Each line trains a recipe of recipes/ as a user would, in processes of its own, and reads the run's evaluations: the one
before the first step and the one after the last. Weights and data come by `toolkit fetch`; all figures are of the held-out split.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.page import parser, publish, table, tracked

ROOT = Path(__file__).parents[1]
TINY = ("--steps", "2", "--evaluation.max_sequences", "8", "--checkpoint.export", "false")
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    recipe: str
    """Stem of a file in recipes/."""
    metric: str
    """Of its evaluation."""
    goal: float
    """What the metric has to reach after training with every seed."""
    rises: bool
    """Whether it is better when it is higher."""
    options: tuple[str, ...] = ()
    """Of the command line, where the recipe as it stands is not what is measured."""
    tiny: tuple[str, ...] = ()
    """Further options with --tiny: data that is small and that every host has."""


def data(name: str) -> tuple[str, ...]:
    """The options that train and evaluate on the data set `name`."""
    return ("--data.train", name, "--data.evaluation", name)


TASKS = {
    "mails: spam or ham": Line(
        "classify_minilm_zero1",
        "accuracy",
        goal=0.94,
        rises=True,
        options=(*data("spamassassin"), "--evaluation.max_sequences", "771"),
        tiny=data("python-packages"),
    ),
}
"""By what is learned. Data sets for further lines: brown-tags and brown-names (words with tags), brown-corpus (masked words),
debian-en-de (translation), debian-summaries, docstring-questions (spans), debian-pairs (sentence embeddings), docstring-preferences and
docstring-feedback."""


@dataclass(frozen=True)
class Outcome:
    """What one run has measured."""

    before: float
    after: float
    seconds: float


def main(arguments: list[str]) -> None:
    """Measure and publish; ends with an error where a goal is missed."""
    made = parser(__doc__, __file__)
    made.add_argument("--seeds", type=int, help="runs of each task (default 3; 1 with --tiny)")
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    options = made.parse_args(arguments)
    seeds = range(options.seeds or (1 if options.tiny else 3))
    runs = [(name, seed) for name in options.tasks for seed in seeds]
    found: dict[str, list[Outcome]] = {name: [] for name in options.tasks}
    for name, seed in tracked(runs, "runs"):
        found[name].append(train(TASKS[name], seed, options))
    header = ["", "recipe", "metric", "before", "after", "least favourable", "goal", "seconds"]
    rows = [row(name, TASKS[name], outcomes) for name, outcomes in found.items()]
    about = (
        f"Means over {len(seeds)} seeds, and the least favourable of them; seconds are of one run, its start included."
    )
    publish(options, "Every task on real data", [str(__doc__).strip(), table(header, rows), about])
    missed = [name for name, outcomes in found.items() if not reached(TASKS[name], outcomes)]
    if missed and not options.tiny:
        sys.exit(f"goal missed: {', '.join(missed)}")


def train(line: Line, seed: int, options: argparse.Namespace) -> Outcome:
    """One run of the recipe, in one process, with what its evaluations say."""
    with tempfile.TemporaryDirectory(prefix="tasks_") as folder:
        output = Path(folder) / "run"
        extra = (*line.options, *line.tiny, *TINY) if options.tiny else line.options
        command = [sys.executable, str(ROOT / "recipes" / f"{line.recipe}.py"), *extra]
        command += ["--seed", str(seed), "--output_dir", str(output), "--tracking.tensorboard", "false"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        before, *_, after = evaluations(output / "metrics.jsonl", line.metric)
        return Outcome(before, after, time.perf_counter() - start)


def evaluations(metrics: Path, name: str) -> list[float]:
    """The metric `name` of each evaluation of a run, in order."""
    records = [json.loads(text) for text in metrics.read_text(encoding="utf-8").splitlines()]
    return [record["eval"][name] for record in records if "eval" in record]


def row(name: str, line: Line, outcomes: Sequence[Outcome]) -> list[str]:
    """The line of the table."""
    after = [outcome.after for outcome in outcomes]
    mark = "at least" if line.rises else "at most"
    return [
        name,
        line.recipe,
        line.metric,
        f"{statistics.mean(outcome.before for outcome in outcomes):.3f}",
        f"{statistics.mean(after):.3f}",
        f"{worst(line, outcomes):.3f}",
        f"{mark} {line.goal:g}",
        f"{statistics.mean(outcome.seconds for outcome in outcomes):.0f}",
    ]


def worst(line: Line, outcomes: Sequence[Outcome]) -> float:
    """The least favourable figure after training."""
    after = [outcome.after for outcome in outcomes]
    return min(after) if line.rises else max(after)


def reached(line: Line, outcomes: Sequence[Outcome]) -> bool:
    """Whether every seed has reached the goal."""
    found = worst(line, outcomes)
    return found >= line.goal if line.rises else found <= line.goal


if __name__ == "__main__":
    main(sys.argv[1:])
