"""From a recipe to what its rehearsal showed: make it small, train it, resume it in new processes, compare. Imports no torch."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.manifest import complete_steps
from toolkit.errors import InputError, RunFailed, ToolkitError
from toolkit.rehearsal.compare import compare, records
from toolkit.rehearsal.smaller import SAVED_STEP, STEPS, Smaller
from toolkit.train import ranks

# By name: this process would need ten seconds to import what only the ranks use.
PREPARE, TRAIN = "toolkit.rehearsal.work:prepare", "toolkit.rehearsal.work:train_small"
STRAIGHT, RESUMED = "straight", "resumed"
LOOK_S = 0.1
PREPARE_TIMEOUT_S, TRAIN_TIMEOUT_S = 300.0, 900.0
"""The first run of a host may compile kernels."""

Say = Callable[[str, str], None]
"""Shows a phase, and what came of it."""


@dataclass(frozen=True)
class Rehearsal:
    """What was done."""

    prepared: Any
    """The ranks' Prepared."""
    files: int
    """Files of weights and states that the two runs have alike."""
    rounding: float
    """How far apart these are, relative to their norm; 0.0: not by a bit."""
    dtype: str
    """Number format of the parameters."""


def rehearse(small: Smaller, folder: Path, say: Say) -> Rehearsal:
    """Rehearse `small` in `folder`, whose contents are of no use afterwards.

    Raises InputError for what a run would refuse, too, RunFailed where a step fails or the resumed run is another one.
    """
    (prepared,) = _run("preparing model and data", PREPARE, 1, small.recipe, str(folder), timeout_s=PREPARE_TIMEOUT_S)
    say("model", prepared.model)
    for line in prepared.said:
        say("data", line)
    count = small.mesh.world_size
    with _followed(folder / STRAIGHT, 0, say):
        _train("the run", count, prepared.recipe, folder, STRAIGHT, None)
    checkpoint = folder / STRAIGHT / "checkpoints" / f"step-{SAVED_STEP:08d}"
    say("resume", f"from the checkpoint of step {SAVED_STEP}, in new processes")
    try:
        with _followed(folder / RESUMED, SAVED_STEP, say):
            _train("the resumed run", count, prepared.recipe, folder, RESUMED, str(checkpoint))
    except InputError as error:
        # The run before it was given the same: what is refused now is the run's own checkpoint, or data that has changed.
        raise RunFailed(f"the resumed run is refused: {error.what}", expected=error.expected, do=error.do) from None
    optimizer = prepared.recipe.optimizer
    # DeepSpeed's kernels multiply beta^t up step by step, and take a power where they begin (csrc/includes/cpu_adam.h).
    rounds = optimizer.implementation == "deepspeed" or prepared.recipe.parallel.offload_ratio < 1.0
    files, rounding = compare(folder / STRAIGHT, folder / RESUMED, STEPS, may_round=rounds)
    config = json.loads((folder / STRAIGHT / "ds_config.json").read_text(encoding="utf-8"))
    return Rehearsal(prepared, files, rounding, next((name for name in ("bf16", "fp16") if name in config), "fp32"))


def _train(what: str, count: int, recipe: Any, folder: Path, name: str, resume: str | None) -> None:
    _run(what, TRAIN, count, recipe, str(folder), name, resume, timeout_s=TRAIN_TIMEOUT_S)


def _run(what: str, function: str, count: int, *args: Any, timeout_s: float) -> list[Any]:
    """What the ranks return. Raises what one of them raised on purpose, else RunFailed."""
    try:
        return ranks.run(function, count, *args, timeout_s=timeout_s)
    except ranks.RankFailed as failed:
        if isinstance(failed.error, ToolkitError):
            raise failed.error from None
        print(failed, file=sys.stderr)
        raise RunFailed(
            f"{what} failed: {failed.headline}",
            expected=f"{STEPS} steps, a checkpoint and a resume",
            do="look at the traceback above: the recipe's own run would most likely end there, too",
        ) from None


@contextmanager
def _followed(run: Path, first: int, say: Say) -> Iterator[None]:
    """While the context is open, say each step of `run` after `first`, and the checkpoint that is resumed from."""
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(run, first, say, done), daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _follow(run: Path, first: int, say: Say, done: threading.Event) -> None:
    waiting = [("step", step) for step in range(first + 1, STEPS + 1)]
    if first < SAVED_STEP:
        waiting.insert(SAVED_STEP - first, ("checkpoint", SAVED_STEP))
    ends = False
    while not ends:
        # Asked before looking: what was written by then is said.
        ends = done.wait(LOOK_S)
        while waiting and (line := _seen(run, *waiting[0])) is not None:
            kind, step = waiting.pop(0)
            say(f"step {step}" if kind == "step" else kind, line)


def _seen(run: Path, kind: str, step: int) -> str | None:
    """What to say of a step or a checkpoint of `run`; None: it is not there."""
    if kind == "checkpoint":
        return f"of step {step} is written" if step in complete_steps(run / "checkpoints") else None
    record = records(run).get(step)
    return None if record is None else f"loss {record['loss']:.4f}"
