"""Tiny runs for the tests of launchers, recipes and kills: the recipe, as an object and as a file, and what a run left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from toolkit.recipe import Batch, Checkpoint, Data, Model, Optimizer, Parallel, Precision, Recipe, Schedule, Tracking

TIMES = ("tokens_per_second", "step_time_s", "tflops_per_device", "memory_gib")
"""Fields of a metrics record that no two runs share."""

RECIPE_FILE = '''"""A tiny run."""

from toolkit import *

recipe = {recipe!r}

if __name__ == "__main__":
    main(recipe)
'''


OUR_ERROR = re.compile(r"^(?:[\d.]+: )?(error(?: \[rank \d+\])?: .+)$", re.MULTILINE)
"""The first line of a message of ours. pdsh puts the host's address before it; a compiler's or a launcher's line is none."""


FOREIGN = re.compile(
    r"^\[.*|^(?:SEED_LAYERS|Using topology|stage=).*|.*(?:warning|\berror\b|ninja|extension module|time to load|it/s).*",
    re.IGNORECASE | re.MULTILINE,
)
"""Lines that loggers, compilers and progress bars of other programs write, and a run of ours that succeeds does not."""


def tiny_recipe(model: Path, data: Path, *, steps: int, checkpoint: Checkpoint) -> Recipe:
    """fp32, ZeRO-2, accumulation 2 on two ranks, dropout, clipping that bites, a rate that differs from step to step."""
    return Recipe(
        model=Model(path=str(model), dropout=0.1),
        data=Data(train=str(data)),
        batch=Batch(global_size=4, micro_size=1, sequence_length=64),
        optimizer=Optimizer(learning_rate=1e-2, weight_decay=0.01, max_grad_norm=0.5),
        schedule=Schedule(type="cosine", warmup_steps=2),
        precision=Precision(dtype="fp32"),
        parallel=Parallel(zero_stage=2),
        checkpoint=checkpoint,
        tracking=Tracking(tensorboard=False),
        steps=steps,
    )


def write_recipe(path: Path, recipe: Recipe) -> Path:
    """`recipe` as the file a user would launch."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(RECIPE_FILE.format(recipe=recipe), encoding="utf-8")
    return path


def train_in_rank(
    rank: int, world_size: int, recipe: Recipe, output_dir: str, cache: str, resume: str | None = "auto"
) -> tuple[int, str]:
    """Train in this test rank; (exit code, what was printed)."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = train(recipe, output_dir, cache, resume)
    return code, printed.getvalue()


def train(recipe: Recipe, output_dir: str, cache: str, resume: str | None) -> int:
    """The run itself, as the command line would start it."""
    from toolkit.train.run import RunOptions
    from toolkit.train.run import train as run

    os.environ["TOOLKIT_CACHE"] = cache
    return run(recipe, RunOptions("test", Path(output_dir), resume), keep_group=True)


def records(output_dir: Path) -> list[dict[str, Any]]:
    """The step records of a run without their times."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [record for record in map(json.loads, lines) if "loss" in record]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in found]


def hashes(output_dir: Path, step: int) -> list[str]:
    """SHA-256 of each rank's part of a checkpoint: fp32 weights and optimizer states."""
    manifest = output_dir / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    return [file["sha256"] for file in json.loads(manifest.read_text(encoding="utf-8"))["files"]]
