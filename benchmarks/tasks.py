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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.page import parser, publish, table, tracked

ROOT = Path(__file__).parents[1]
TINY = ("--steps", "2", "--evaluation.max_sequences", "8", "--checkpoint.export", "false")
TIMEOUT_S = 3600.0
START = "start"


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    recipe: str
    """Stem of a file in recipes/."""
    metric: str
    """Of its evaluation."""
    goal: float
    """What the metric has to reach after training with every seed: itself, or in the unit of `relative_to`."""
    rises: bool
    """Whether it is better when it is higher."""
    relative_to: str | None = None
    """START: `goal` is a share of the metric before training; another line: of that line's after training with the same seed."""
    also: tuple[str, ...] = ()
    """Further metrics that are shown."""
    options: tuple[str, ...] = ()
    """Of the command line, where the recipe as it stands is not what is measured."""
    tiny: tuple[str, ...] = ()
    """Further options with --tiny: data that is small and that every host has."""


def short(steps: int, batch: int, *more: str) -> tuple[str, ...]:
    """Options of a run of so many steps with a smaller batch, where the recipe as it stands takes two cores too long."""
    ends = ("--evaluation.every_steps", "0", "--checkpoint.every_steps", "0")
    last = ("--checkpoint.keep_best", "false", "--evaluation.metric", "loss")
    return ("--steps", str(steps), "--batch.global_size", str(batch), *ends, *last, *more)


TASKS = {
    "mails, spam or ham": Line(
        "classify_minilm_spam_zero2",
        "accuracy",
        0.94,
        rises=True,
        also=("majority_accuracy", "f1_macro"),
        options=short(60, 16, "--batch.sequence_length", "96"),
        tiny=("--data.train", "python-packages", "--data.evaluation", "python-packages"),
    ),
    "names in sentences": Line(
        "tag_minilm_brown_zero1",
        "f1",
        0.4,
        rises=True,
        also=("accuracy",),
        options=short(80, 16),
    ),
    "hidden words": Line(
        "mlm_minilm_brown_zero1",
        "loss",
        0.7,
        rises=False,
        relative_to=START,
        also=("accuracy",),
        options=short(50, 16),
    ),
    "answers in a page": Line(
        "qa_minilm_docstrings_zero3",
        "f1",
        25.0,
        rises=True,
        also=("exact_match",),
        options=short(80, 16),
    ),
    "English to German": Line(
        "translate_bert2bert_debian_zero2",
        "loss",
        0.6,
        rises=False,
        relative_to=START,
        also=("bleu", "chrf"),
        options=short(80, 16),
    ),
    "titles of descriptions": Line(
        "summarize_bert2bert_debian_zero2",
        "loss",
        0.6,
        rises=False,
        relative_to=START,
        also=("rouge1", "rougeL"),
        options=short(60, 16),
    ),
    "titles and their texts": Line(
        "embed_minilm_debian_zero1",
        "mrr",
        1.0,
        rises=True,
        relative_to=START,
        also=("loss",),
        options=short(20, 64),
    ),
    "chat, all weights": Line("sft_smollm2_zero2", "loss", 0.8, rises=False, relative_to=START),
    "chat, LoRA": Line("lora_smollm2_zero2", "loss", 1.03, rises=False, relative_to="chat, all weights"),
    "true answers preferred": Line(
        "dpo_smollm2_zero2",
        "rewards/accuracies",
        0.8,
        rises=True,
        also=("loss", "rewards/margins"),
        options=short(12, 4),
    ),
}
"""By what is learned."""
MEDIA = {
    "clothes, fine-tuned": Line(
        "images_efficientnet_fashion_zero1",
        "accuracy",
        0.75,
        rises=True,
        also=("majority_accuracy", "top5_accuracy"),
        tiny=("--data.max_examples", "64"),
    ),
    "clothes, from scratch": Line(
        "images_resnet18_fashion_zero2",
        "accuracy",
        0.85,
        rises=True,
        also=("majority_accuracy", "f1_macro"),
        options=("--evaluation.max_sequences", "None", "--evaluation.every_steps", "0"),
    ),
    "speech, words for digits": Line(
        "asr_whisper_tiny_zero1",
        "exact_match",
        0.85,
        rises=True,
        also=("wer", "cer"),
        options=("--evaluation.every_steps", "0", "--checkpoint.every_steps", "0", "--checkpoint.export", "false"),
    ),
}
"""The same of images and sound."""
GROUPS = {"texts": TASKS, "media": MEDIA}
LINES = TASKS | MEDIA


@dataclass(frozen=True)
class Outcome:
    """What one run has measured."""

    before: float
    after: float
    seconds: float
    also: tuple[tuple[float, float], ...] = ()
    """Further metrics, before and after."""


def main(arguments: list[str]) -> None:
    """Measure and publish; ends with an error where a goal is missed."""
    made = parser(__doc__, __file__)
    made.add_argument("--seeds", type=int, help="runs of each task (default 3; 1 with --tiny)")
    made.add_argument("--group", choices=GROUPS, default="texts", help="each has a page of its own (default: texts)")
    made.add_argument("--tasks", nargs="+", choices=[*TASKS, *MEDIA], help="default: all of the group")
    options = made.parse_args(arguments)
    if options.group == "media":
        options.page = options.page.with_stem(f"{options.page.stem}_media")
        options.script += " --group media"
    options.tasks = options.tasks or list(GROUPS[options.group])
    seeds = range(options.seeds or (1 if options.tiny else 3))
    runs = [(name, seed) for name in options.tasks for seed in seeds]
    found: dict[str, list[Outcome]] = {name: [] for name in options.tasks}
    for name, seed in tracked(runs, "runs"):
        found[name].append(train(LINES[name], seed, options))
        print(
            f"{name}, seed {seed}: {LINES[name].metric} {found[name][-1].before:.4f} -> {found[name][-1].after:.4f}",
            flush=True,
        )
    header = ["", "recipe", "metric", "before", "after", "least favourable", "goal", "also", "seconds"]
    rows = [row(name, found) for name in found]
    about = (
        f"Means over {len(seeds)} seeds, and the least favourable of them; seconds are of one run, its start included."
    )
    publish(options, "Every task on real data", [str(__doc__).strip(), table(header, rows), about])
    missed = [name for name in found if not reached(name, found)]
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
        ends = [evaluations(output / "metrics.jsonl", name) for name in (line.metric, *line.also)]
        (before, after), *also = ((found[0], found[-1]) for found in ends)
        return Outcome(before, after, time.perf_counter() - start, tuple(also))


def evaluations(metrics: Path, name: str) -> list[float]:
    """The metric `name` of each evaluation of a run, in order."""
    records = [json.loads(text) for text in metrics.read_text(encoding="utf-8").splitlines()]
    return [record["eval"][name] for record in records if "eval" in record]


def row(name: str, found: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """The line of the table."""
    line, outcomes = LINES[name], found[name]
    unit = "" if line.relative_to is None else f" of {'its start' if line.relative_to == START else line.relative_to}"
    judged = worst(name, found)
    return [
        name,
        line.recipe,
        line.metric,
        f"{statistics.mean(outcome.before for outcome in outcomes):.3f}",
        f"{statistics.mean(outcome.after for outcome in outcomes):.3f}",
        "not measured" if judged is None else f"{judged:.3f}{unit}",
        f"{'at least' if line.rises else 'at most'} {line.goal:g}{unit}",
        "; ".join(
            f"{metric} {statistics.mean(pair[0] for pair in pairs):.3f} to {statistics.mean(pair[1] for pair in pairs):.3f}"
            for metric, pairs in zip(line.also, zip(*(outcome.also for outcome in outcomes), strict=True), strict=False)
        ),
        f"{statistics.mean(outcome.seconds for outcome in outcomes):.0f}",
    ]


def worst(name: str, found: Mapping[str, Sequence[Outcome]]) -> float | None:
    """The least favourable figure over the seeds, in the unit of the goal; None where what it refers to was not measured."""
    line, outcomes = LINES[name], found[name]
    if line.relative_to is None:
        figures = [outcome.after for outcome in outcomes]
    elif line.relative_to == START:
        figures = [outcome.after / outcome.before for outcome in outcomes]
    elif line.relative_to in found:
        others = found[line.relative_to]
        figures = [outcome.after / other.after for outcome, other in zip(outcomes, others, strict=True)]
    else:
        return None
    return min(figures) if line.rises else max(figures)


def reached(name: str, found: Mapping[str, Sequence[Outcome]]) -> bool:
    """Whether every seed has reached the goal, as far as it was measured."""
    line, judged = LINES[name], worst(name, found)
    return judged is None or (judged >= line.goal if line.rises else judged <= line.goal)


if __name__ == "__main__":
    main(sys.argv[1:])
