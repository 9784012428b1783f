"""What the loop keeps and where it ends, beside an engine whose losses and gradients are given: fp16 needs no fp16 here."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from toolkit.checkpoint.manifest import complete_steps, read_manifest
from toolkit.data.batches import StepBatch
from toolkit.engine import process
from toolkit.engine.protocol import StepResult
from toolkit.errors import RunFailed
from toolkit.recipe import Checkpoint, Data, Evaluation, Recipe
from toolkit.train.divergence import with_way_back
from toolkit.train.interrupts import Interrupt
from toolkit.train.loop import Loop
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder
from toolkit.train.watch import Watch

TOTAL = 9
BATCH = StepBatch(0, 0.0, [{}], np.array([1]))


class Engine:
    """One weight, and the given loss each time it is asked for one."""

    def __init__(self, losses: Iterator[float], loss_scale: float | None) -> None:
        self.losses, self.loss_scale = losses, loss_scale
        self.model = torch.nn.Linear(1, 1)
        self.observed: list[float] = []

    def averaged(self) -> Any:
        return nullcontext()

    def evaluate(self, batches: object, function: object) -> dict[str, float]:
        return {"loss": next(self.losses)}

    def observe(self, metric: float) -> None:
        self.observed.append(metric)

    def fragments(self) -> Iterator[Any]:
        return iter(())

    def shapes(self) -> dict[str, list[int]]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}


def make_loop(folder: Path, losses: list[float], *, fp16: bool, held_out: bool = True, **sections: Any) -> Loop:
    """A loop of TOTAL steps; each evaluation takes the next of `losses`."""
    task = SimpleNamespace(
        collate=None,
        evaluate=None,
        metrics=dict,
        sample=None,
        makes_records=False,
        surveys=False,
        looks=False,
        transforms=False,
    )
    inputs = SimpleNamespace(
        total_steps=TOTAL,
        task=task,
        held_out=object() if held_out else None,
        held_out_sequences=[],
        batches=SimpleNamespace(state=lambda _: {}),
    )
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "data": Data(train="d", evaluation_examples=8),
        "batch": {"global_size": 1},
    }
    recipe = Recipe(**values, steps=TOTAL, **sections)
    engine = Engine(iter(losses), 2.0**16 if fp16 else None)
    interrupt, identity = Interrupt(), cast("Mapping[str, Any]", {"facts": {"examples": "x"}})
    me, display = process.from_environment(), Display(is_main=True)
    return Loop(
        recipe, cast("Any", inputs), cast("Any", engine), me, RunFolder(folder), display, interrupt,
        Watch("loss", higher_is_better=False), identity,
    )  # fmt: skip


def result(skipped_in_a_row: int = 0) -> StepResult:
    return StepResult(1.0, 1.0, 1e-5, 1, None, skipped_in_a_row)


def kept(loop: Loop) -> list[int]:
    return complete_steps(loop.folder.checkpoints)


def test_an_early_stop_of_fp16_keeps_no_dead_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN evaluations are not fatal one by one, but they use up the patience."""
    loop = make_loop(
        tmp_path,
        [1.0, math.nan, math.nan],
        fp16=True,
        evaluation=Evaluation(every_steps=2, early_stopping_patience=2),
        checkpoint=Checkpoint(keep_best=True),
    )
    assert [loop._after_step(step, BATCH, result()) for step in range(1, 6)] == [False] * 5
    assert "the held-out loss is nan after step 4: it does not fit into fp16" in capsys.readouterr().out
    with pytest.raises(RunFailed, match="the held-out loss is nan after step 6") as failed:
        loop._after_step(6, BATCH, result())
    assert "precision.dtype='bf16'" in failed.value.do and failed.value.exit_code == 3
    assert kept(loop) == [2] and loop.last_good == loop.folder.checkpoints / "step-00000002"


@pytest.mark.parametrize("held_out", [True, False])
def test_an_interrupt_of_fp16_keeps_no_dead_model(tmp_path: Path, held_out: bool) -> None:
    every = Evaluation(every_steps=1) if held_out else Evaluation()
    loop = make_loop(tmp_path, [math.nan], fp16=True, held_out=held_out, evaluation=every)
    loop.interrupt.signal = signal.SIGTERM
    what = "the held-out loss" if held_out else "the loss of the last micro-batch"
    with pytest.raises(RunFailed, match=f"{what} is nan after step 3"):
        loop._after_step(3, BATCH, result())
    assert kept(loop) == []


def test_one_bad_text_of_fp16_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched = Evaluation(every_steps=1)
    loop = make_loop(tmp_path, [math.inf], fp16=True, evaluation=watched, checkpoint=Checkpoint(every_steps=1))
    assert not loop._after_step(1, BATCH, result())
    assert capsys.readouterr().out.count("does not fit into fp16") == 1 and kept(loop) == [1]


def test_a_best_that_is_not_saved_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps without a gradient: a better loss then is not the best, and the checkpoint of the best stays."""
    loop = make_loop(
        tmp_path,
        [3.0, 1.0, 2.0, 2.5],
        fp16=False,
        evaluation=Evaluation(every_steps=1, early_stopping_patience=5),
        checkpoint=Checkpoint(every_steps=1, keep=1, keep_best=True),
    )
    for step, skipped in ((1, 0), (2, 2), (3, 0), (4, 1)):
        assert not loop._after_step(step, BATCH, result(skipped))
    assert "no checkpoint of step 2: the gradients of the last 2 steps, up to step 2, were not finite" in (
        capsys.readouterr().out
    )
    assert (loop.watch.best, loop.watch.best_step, loop.watch.bad_evaluations) == (2.0, 3, 1)
    assert kept(loop) == [3, 4] and cast("Any", loop.engine).observed == [3.0, 2.0, 2.5]
    loop.interrupt.signal = signal.SIGTERM
    with pytest.raises(RunFailed, match="the gradients of the last 3 steps, up to step 5, were not finite"):
        cast("Any", loop.engine).losses = iter([2.0])
        loop._after_step(5, BATCH, result(3))


def zero_gradient() -> StepResult:
    return StepResult(1.0, 0.0, 1e-5, 1, None, 0)


def test_weights_without_a_gradient_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gradient of exactly zero under a loss that is not: saturated, and one step later perhaps not even finite."""
    loop = make_loop(tmp_path, [1.0] * 9, fp16=False, held_out=False, checkpoint=Checkpoint(every_steps=1))
    assert not loop._after_step(1, BATCH, result()) and not loop._after_step(2, BATCH, result())
    assert not loop._after_step(3, BATCH, zero_gradient())
    assert "no checkpoint of step 3: the gradient of step 3 is zero, though its loss is 1" in capsys.readouterr().out
    assert kept(loop) == [1, 2]
    with pytest.raises(
        RunFailed, match="the gradients of the last 7 steps, up to step 9, were not finite or zero"
    ) as failed:
        for step in range(4, TOTAL + 1):
            loop._after_step(step, BATCH, result(step - 3))
    assert failed.value.exit_code == 3 and kept(loop) == [1, 2]


def test_a_loss_of_zero_needs_no_gradient(tmp_path: Path) -> None:
    """What has nothing left to learn is no dead model."""
    loop = make_loop(tmp_path, [0.0], fp16=False, held_out=False, checkpoint=Checkpoint(every_steps=1))
    assert not loop._after_step(1, BATCH, StepResult(0.0, 0.0, 1e-5, 1, None, 0))
    assert kept(loop) == [1]


def test_steps_without_a_gradient_are_counted_on_after_a_resume(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, [1.0], fp16=False, held_out=False, checkpoint=Checkpoint(every_steps=1))
    assert not loop._after_step(1, BATCH, result(1))
    assert read_manifest(loop.folder.checkpoints / "step-00000001").run["suspect_from"] == 0
    again = make_loop(tmp_path, [], fp16=False, held_out=False, checkpoint=Checkpoint(every_steps=1))
    again.suspect_from = 0
    assert not again._after_step(2, BATCH, result(1))
    assert kept(again) == [1]


@pytest.mark.parametrize(
    ("suspect_from", "said"),
    [
        (None, "the last good checkpoint is step 3, {0}/checkpoints/step-00000003: continue from it with --resume auto --output_dir {0}"),
        (4, "the last good checkpoint is step 3, {0}/checkpoints/step-00000003: continue from it with --resume auto --output_dir {0}"),
        (3, "the last good checkpoint is step 2, since the weights of later ones gave no gradient: continue from it with "
            "--resume {0}/checkpoints/step-00000002 and another --output_dir"),
        (1, "the weights gave no gradient any more from step 1 on, and {0} has no checkpoint before it: "
            "start again in another --output_dir"),
    ],
)  # fmt: skip
def test_the_way_back_leads_to_weights_that_learned(tmp_path: Path, suspect_from: int | None, said: str) -> None:
    loop = make_loop(tmp_path, [1.0] * 3, fp16=False, held_out=False, checkpoint=Checkpoint(every_steps=1, keep=9))
    for step in (1, 2, 3):
        loop._after_step(step, BATCH, result())
    error = RunFailed("the loss is nan", expected="a finite loss", do="lower it")
    told = with_way_back(error, 5, loop.last_good, loop.folder, is_trained=True, suspect_from=suspect_from)
    assert told.do == f"lower it; {said.format(tmp_path)}"
