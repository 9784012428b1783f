"""Runs that go wrong end with exit 3 and advice; rates, regularisation and world size do what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER, recipe
from tests.parity.worker import run_recipe
from tests.processor import require_number_format
from toolkit.checkpoint.export import find_checkpoint
from toolkit.recipe import (
    Batch,
    CausalLM,
    Checkpoint,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
)
from toolkit.recipe.schedules import factor
from toolkit.tasks.language.causal_lm import CausalLMTask


def outcome(rank: int, world_size: int, run: Recipe, output_dir: str) -> tuple[int, str]:
    """Exit code and message of a run that fails."""
    from toolkit.errors import ToolkitError
    from toolkit.train.run import RunOptions, train

    try:
        return train(run, RunOptions("test", Path(output_dir)), keep_group=True), ""
    except ToolkitError as error:
        return error.exit_code, str(error)


def test_a_loss_that_is_not_finite_ends_the_run(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Every rank stops with exit 3, before the weights are touched."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        optimizer=OPTIMIZER.model_copy(update={"learning_rate": 1e38, "max_grad_norm": 0.0}),
        schedule=Schedule(type="constant"),
    )
    for code, message in run_distributed(outcome, 2, run, str(tmp_path)):
        assert code == 3
        assert "expected: a finite loss" in message
        assert "optimizer.learning_rate" in message


def test_a_loss_scale_spiral_ends_the_run(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """fp16 that overflows at the smallest loss scale: exit 3 and advice."""
    require_number_format("fp16")
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        precision=Precision(dtype="fp16", initial_scale_power=32, min_loss_scale=2.0**31, hysteresis=1),
    )
    for code, message in run_distributed(outcome, 2, run, str(tmp_path)):
        assert code == 3
        assert "precision.min_loss_scale" in message
        assert "precision.dtype='bf16'" in message


def test_fp16_skips_overflowing_steps_and_says_so(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Too large a scale: the first steps are skipped, the scale halves, the rate waits for the first real step."""
    require_number_format("fp16")
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        precision=Precision(dtype="fp16", initial_scale_power=24, hysteresis=1),
        schedule=Schedule(type="linear", warmup_steps=3),
        steps=14,
    )
    records = run_distributed(run_recipe, 2, [(run, str(tmp_path), None)])[0][0]
    skipped = [record for record in records if record["skipped"]]
    taken = [record for record in records if not record["skipped"]]
    assert skipped and taken
    assert len(skipped) > 1
    scales = [record["loss_scale"] for record in skipped]
    assert scales == [scales[0] / 2**index for index in range(len(scales))]
    assert len({record["loss_scale"] for record in taken}) == 1
    assert all(record["grad_norm"] is None for record in skipped)
    rates = [record["learning_rate"] for record in taken]
    assert rates == pytest.approx(
        [OPTIMIZER.learning_rate * factor(run.schedule, step, 14) for step in range(len(taken))], rel=1e-12
    )


SCHEDULES = [
    Schedule(type="constant"),
    Schedule(type="constant", warmup_steps=4),
    Schedule(type="linear"),
    Schedule(type="linear", warmup_steps=1),
    Schedule(type="linear", warmup_steps=4),
    Schedule(type="linear", warmup_steps=4, min_ratio=0.1),
    Schedule(type="cosine", warmup_steps=3, min_ratio=0.1),
    Schedule(type="warmup_stable_decay", warmup_steps=2, decay_steps=4),
    Schedule(type="polynomial", power=2.0, warmup_steps=2),
    Schedule(type="exponential", gamma=0.9),
    Schedule(type="step", step_size=3, gamma=0.5),
    Schedule(type="multi_step", milestones=(3, 7), gamma=0.5),
    Schedule(type="inverse_sqrt", warmup_steps=3),
    Schedule(type="one_cycle"),
]


def test_every_schedule_logs_the_closed_form(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """The rate each optimizer step used, as logged, for every schedule, through DeepSpeed."""
    steps = 12
    runs = [
        recipe(
            "causal_lm",
            tiny_llama_dir,
            chat_file,
            schedule=schedule,
            steps=steps,
            batch=Batch(global_size=1, micro_size=1, sequence_length=64),
            parallel=Parallel(zero_stage=index % 4),
        )
        for index, schedule in enumerate(SCHEDULES)
    ]
    found = run_distributed(run_recipe, 1, [(run, str(tmp_path / str(i)), None) for i, run in enumerate(runs)])[0]
    for run, records in zip(runs, found, strict=True):
        wanted = [run.optimizer.learning_rate * factor(run.schedule, step, steps) for step in range(steps)]
        logged = [record["learning_rate"] for record in records]
        assert logged == pytest.approx(wanted, rel=1e-9, abs=1e-18), run.schedule


def test_the_plateau_drops_the_rate_after_bad_evaluations(
    tiny_llama_dir: Path, chat_file: Path, tmp_path: Path
) -> None:
    """A rate that makes the held-out loss rise is cut by gamma, evaluation by evaluation, down to min_ratio."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        data=Data(train=str(chat_file), evaluation_examples=20, prefetch=0),
        optimizer=OPTIMIZER.model_copy(update={"learning_rate": 1.0, "max_grad_norm": 0.0}),
        schedule=Schedule(type="reduce_on_plateau", patience=0, gamma=0.5, min_ratio=0.2),
        evaluation=Evaluation(every_steps=1, max_sequences=2),
        steps=8,
    )
    records = run_distributed(run_recipe, 1, [(run, str(tmp_path), None)])[0][0]
    rates = [record["learning_rate"] for record in records]
    assert rates[0] == 1.0
    assert set(rates) <= {1.0, 0.5, 0.25, 0.2} and rates == sorted(rates, reverse=True) and rates[-1] < 1.0


def test_dropout_and_noise_do_not_depend_on_the_world_size(
    tiny_llama_dir: Path, chat_file: Path, tmp_path: Path
) -> None:
    """One curve with dropout, NEFTune and label smoothing, on one rank and on two, with other accumulation; large seeds."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        model=Model(path=str(tiny_llama_dir), dropout=0.2),
        task=CausalLM(neftune_alpha=5.0, label_smoothing=0.1),
        steps=6,
        seed=20_241_126,
    )
    plain = recipe("causal_lm", tiny_llama_dir, chat_file, steps=6, seed=2**63 - 1)
    one = run_distributed(run_recipe, 1, [(run, str(tmp_path / "1"), None), (plain, str(tmp_path / "p"), None)])[0]
    two = run_distributed(run_recipe, 2, [(run, str(tmp_path / "2"), None)])[0][0]
    for ours, theirs in zip(one[0], two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert abs(one[0][0]["loss"] - one[1][0]["loss"]) > 1e-3, "the regularisation must change the loss"


def sample_unevenly(rank: int, world_size: int, run: Recipe, folder: str) -> list[Any]:
    """A run whose first rank stops its answer after three tokens, as rounding may let a rank end it."""
    plain = CausalLMTask.sample

    def sample(task: CausalLMTask, model: Any, generate: Any) -> str | None:
        whole = task.options
        task.options = whole.model_copy(update={"sample_tokens": 3 if rank == 0 else 6})
        try:
            return plain(task, model, generate)
        finally:
            task.options = whole

    CausalLMTask.sample = sample  # type: ignore[method-assign]
    return run_recipe(rank, world_size, [(run, folder, None)])[0]


def test_a_rank_that_stops_its_answer_early_waits(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Under ZeRO-3 each token gathers the weights of all ranks: it goes on for the others' sake."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        task=CausalLM(sample_prompt="What does heapq.merge do?"),
        parallel=Parallel(zero_stage=3, param_persistence_threshold=100),
        steps=4,
    )
    records, _ = run_distributed(sample_unevenly, 2, run, str(tmp_path))
    assert len(records) == 4


def test_early_stopping_keeps_the_best_checkpoint(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """A diverging rate: training stops after `patience` bad evaluations and exports the best step."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        data=Data(train=str(chat_file), evaluation_examples=20, prefetch=0),
        optimizer=Optimizer(learning_rate=0.5, max_grad_norm=0.0),
        schedule=Schedule(type="polynomial", power=0.01, warmup_steps=10),
        evaluation=Evaluation(every_steps=2, early_stopping_patience=2),
        checkpoint=Checkpoint(keep=1, keep_best=True, export=True),
        steps=40,
    )
    records = run_distributed(run_recipe, 2, [(run, str(tmp_path), None)])[0][0]
    assert len(records) < 40
    evaluations = [
        record for record in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "eval" in record
    ]
    best: Any = min((record for record in evaluations if record["step"]), key=lambda record: record["eval"]["loss"])
    assert find_checkpoint(tmp_path).name == f"step-{best['step']:08d}"
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert f"step-{best['step']:08d}" in kept and len(kept) == 2
    assert f"after {best['step']} optimizer steps" in (tmp_path / "export" / "README.md").read_text()
