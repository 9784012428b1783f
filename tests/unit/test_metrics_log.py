"""metrics.jsonl and TensorBoard: strict JSON whatever the numbers are, and each step once after a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from toolkit.recipe import Tracking
from toolkit.train.metrics import MetricsLog, cut_after
from toolkit.train.trackers import Trackers
from toolkit.train.watch import Watch


def strictly(path: Path) -> list[dict[str, Any]]:
    """Every line as a parser reads it that knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 2.5, "grad_norm": math.inf})
    log.write({"step": 1, "eval": {"loss": math.nan, "accuracy": 0.5}})
    log.write({"step": 1, "sample": {"scores": [1.0, -math.inf], "answer": "NaN"}})
    log.close()
    assert strictly(log.path) == [
        {"step": 1, "loss": 2.5, "grad_norm": None, "nonfinite": ["grad_norm"]},
        {"step": 1, "eval": {"loss": None, "accuracy": 0.5}, "nonfinite": ["eval.loss"]},
        {"step": 1, "sample": {"scores": [1.0, None], "answer": "NaN"}, "nonfinite": ["sample.scores.1"]},
    ]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [0, 1]), (2, [0, 1, 2, 2]), (9, [0, 1, 2, 2, 3])])
def test_a_resumed_run_writes_every_record_once(tmp_path: Path, step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = ['{"step": 0, "eval": {}}', '{"step": 1}', '{"step": 2}', '{"step": 2, "eval": {}}', '{"step": 3}']
    # What a kill or a power cut may leave at the end: part of a record, bytes that are no text, a number.
    path.write_bytes("\n".join(whole).encode() + b'\n\x00\xff\n7\n{"step": 4, "lo')
    cut_after(path, step)
    assert [record["step"] for record in strictly(path)] == kept
    cut_after(tmp_path / "none.jsonl", 3)


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(first_step: int, last_step: int) -> None:
        trackers = Trackers(Tracking(), tmp_path, {}, first_step)
        if first_step == 0:
            trackers.log({"loss": 9.0}, 0, prefix="eval")
        for step in range(first_step + 1, last_step + 1):
            trackers.log({"step": step, "loss": float(step), "grad_norm": math.nan if step == 2 else 1.0}, step)
        trackers.close()

    for first_step, last_step in ((0, 2), (0, 5), (3, 6)):  # killed before a checkpoint, then after that of step 3
        run(first_step, last_step)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("eval/loss")] == [0]
    assert [event.step for event in events.Scalars("train/grad_norm")] == [1, 3, 4, 5, 6]
    assert [(event.step, event.value) for event in events.Scalars("train/nonfinite")] == [(2, 1.0)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_no_evaluation_that_is_not_finite_is_the_best(bad: float, higher_is_better: bool) -> None:
    watch = Watch("loss", higher_is_better)
    assert not watch.observe(bad, 1)
    assert (watch.best, watch.bad_evaluations) == (None, 1)
    assert watch.observe(1.0, 2) and not watch.observe(bad, 3)
    assert (watch.best, watch.best_step, watch.bad_evaluations) == (1.0, 2, 1)
