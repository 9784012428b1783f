"""Preference tuning against plain PyTorch, answer by answer and unpacked, under every strategy it takes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER, SCHEDULE
from tests.parity.test_lora import FAST, TUNING, plain
from tests.parity.worker import global_batches, run_recipe
from toolkit.models.adapters import fill_adapters
from toolkit.parity import reference
from toolkit.parity.reference import Curve
from toolkit.parity.report import deviation
from toolkit.parity.work import judge_of
from toolkit.recipe import (
    DPO,
    KTO,
    ORPO,
    Batch,
    Checkpoint,
    Data,
    LoRA,
    Model,
    Parallel,
    Precision,
    Recipe,
    RewardModel,
    Schedule,
    SimPO,
    Task,
    Tracking,
)
from toolkit.recipe.schedules import factor
from toolkit.train.run import RunOptions, train

STEPS = 4
LIMITS = (1e-6, 2e-6)
"""Largest relative deviation of losses and of gradient norms, whatever the strategy."""

TASKS: dict[str, Task] = {
    "dpo": DPO(beta=0.3, label_smoothing=0.1),
    "dpo_ipo": DPO(beta=0.3, loss="ipo"),
    "dpo_hinge": DPO(beta=0.3, loss="hinge"),
    "dpo_robust": DPO(beta=0.3, loss="robust", label_smoothing=0.1),
    "orpo": ORPO(beta=0.5),
    "simpo": SimPO(),
    "kto": KTO(beta=0.3, desirable_weight=1.3, undesirable_weight=0.7),
    "reward_model": RewardModel(margin_field="gap", centering=0.01),
}
STRATEGIES = {
    "zero1": Parallel(zero_stage=1),
    "zero2": Parallel(zero_stage=2),
    "zero3": Parallel(zero_stage=3),
    "tensor": Parallel(zero_stage=1, tensor=2),
    "sequence": Parallel(zero_stage=1, sequence=2),
}
"""On two ranks."""
UNDER = {
    "dpo": tuple(STRATEGIES),
    "kto": ("zero3", "tensor", "sequence"),
    "reward_model": ("zero3", "sequence"),
    "orpo": ("zero2", "sequence"),
    "simpo": ("zero3",),
}


@pytest.fixture(scope="module")
def problem(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models and data by kind of task."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [{**row, "gap": number % 5 / 4} for number, row in enumerate(tiny.preferences())]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    torch.manual_seed(1)
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny_llama_dir, num_labels=1)
    return {
        "model": tiny_llama_dir,
        "scorer": tiny.save(scorer, tokenizer, folder / "scorer"),
        "pairs": tiny.write_lines(folder / "pairs.jsonl", rows),
        "judged": tiny.write_lines(folder / "judged.jsonl", tiny.judged()),
    }


def recipe(problem: dict[str, Path], task: Task, **changes: Any) -> Recipe:
    """Ragged pairs, packed; clipping that bites; weight decay; warm-up."""
    sections: dict[str, Any] = {
        "model": Model(path=str(problem["scorer" if task.name == "reward_model" else "model"])),
        "data": Data(train=str(problem["judged" if task.name == "kto" else "pairs"]), prefetch=0),
        "task": task,
        "batch": Batch(global_size=8, micro_size=1, sequence_length=300),
        "optimizer": OPTIMIZER,
        "schedule": SCHEDULE,
        "precision": Precision(dtype="fp32"),
        "parallel": Parallel(zero_stage=1),
        "checkpoint": Checkpoint(export=False),
        "tracking": Tracking(tensorboard=False),
        "steps": STEPS,
    }
    return Recipe(**{**sections, **changes})


def plain_curve(rank: int, world_size: int, wanted: Recipe) -> Curve:
    """What the judge makes of `wanted`."""
    inputs, steps = global_batches(wanted, STEPS)
    model = inputs.task.auto_class.from_pretrained(wanted.model.path, dtype=torch.float32)
    if isinstance(wanted.tuning, LoRA):
        model = plain(model, wanted.tuning, task_type="CAUSAL_LM")
        fill_adapters(model.get_base_model(), inputs.adapters, wanted.seed)
    rate = wanted.optimizer.learning_rate
    curve = reference.train(
        model,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: rate * factor(SCHEDULE, step, STEPS),
        max_grad_norm=OPTIMIZER.max_grad_norm,
        weight_decay=OPTIMIZER.weight_decay,
        judge=partial(judge_of, wanted.task),
    )
    curve.weights = {}
    return curve


def run_fresh(
    rank: int, world_size: int, runs: list[tuple[Recipe, str, None]], cache: str
) -> list[list[dict[str, Any]]]:
    """`run_recipe` with references of its own: what another test has computed says nothing about this one."""
    os.environ["TOOLKIT_CACHE"] = cache
    return run_recipe(rank, world_size, runs)


@pytest.mark.parametrize("name", TASKS)
def test_losses_and_gradients_equal_plain_pytorch(name: str, problem: dict[str, Path], tmp_path: Path) -> None:
    """On one rank in micro-batches of two sequences, and on two ranks of one, under the strategies of UNDER."""
    task = TASKS[name]
    wanted = run_distributed(plain_curve, 1, recipe(problem, task))[0]
    assert len(set(wanted.losses)) >= STEPS - 1 and max(wanted.norms) > 2 * OPTIMIZER.max_grad_norm, wanted
    alone = recipe(problem, task, batch=Batch(global_size=8, micro_size=2, sequence_length=300))
    found = {
        "alone": run_distributed(run_fresh, 1, [(alone, str(tmp_path / "alone"), None)], str(tmp_path / "1"))[0][0]
    }
    runs = {under: recipe(problem, task, parallel=STRATEGIES[under]) for under in UNDER.get(name, ())}
    if runs:
        given = [(run, str(tmp_path / under), None) for under, run in runs.items()]
        found |= dict(
            zip(runs, run_distributed(run_fresh, 2, given, str(tmp_path / "2"), timeout_s=300)[0], strict=True)
        )
    for under, records in found.items():
        assert deviation([record["loss"] for record in records], wanted.losses) < LIMITS[0], under
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < LIMITS[1], under


@pytest.mark.parametrize(("name", "strategies"), [("dpo", ("zero3", "tensor", "sequence")), ("kto", ("zero3",))])
def test_with_adapters_the_reference_is_the_model_without_them(
    name: str, strategies: tuple[str, ...], problem: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing is computed before training; curves are those of plain peft beside a second model."""
    changes: dict[str, Any] = {"tuning": TUNING, "optimizer": FAST}
    wanted = run_distributed(plain_curve, 1, recipe(problem, TASKS[name], **changes))[0]
    model = Model(path=str(problem["model"]), activation_checkpointing=True)
    runs = {
        under: recipe(problem, TASKS[name], parallel=STRATEGIES[under], model=model, **changes) for under in strategies
    }
    given = [(run, str(tmp_path / under), None) for under, run in runs.items()]
    for under, records in zip(
        runs, run_distributed(run_fresh, 2, given, str(tmp_path / "2"), timeout_s=300)[0], strict=True
    ):
        assert deviation([record["loss"] for record in records], wanted.losses) < LIMITS[0], under
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < 1e-5, under


def printed_run(rank: int, world_size: int, run: Recipe, output_dir: str, cache: str) -> str:
    """What rank 0 of a run says."""
    os.environ["TOOLKIT_CACHE"] = cache
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert train(run, RunOptions("test", Path(output_dir)), keep_group=True) == 0
    return said.getvalue()


def test_reference_log_probabilities_are_kept_and_an_interrupted_pass_goes_on(
    problem: dict[str, Path], tmp_path: Path
) -> None:
    """Found by content, whichever world computed them; of a pass that was killed what is there is kept, to the last whole row."""
    brief: dict[str, Any] = {"steps": 1, "schedule": Schedule(type="constant")}
    once = recipe(problem, TASKS["dpo"], **brief)
    cache = tmp_path / "cache"
    [said] = run_distributed(printed_run, 1, once, str(tmp_path / "first"), str(cache))
    assert "reference log-probabilities of data.train: the model as it is before training looks at 96 examples" in said
    [file] = (cache / "references").iterdir()
    whole = np.fromfile(file)
    assert whole[0] == 2 and len(whole) == 1 + 2 * 96 and (whole[1:] < 0).all()
    sharded = recipe(problem, TASKS["dpo"], parallel=STRATEGIES["zero3"], **brief)
    said = run_distributed(printed_run, 2, sharded, str(tmp_path / "second"), str(cache))[0]
    assert "reference log-probabilities of data.train: 96 examples, known from before" in said
    with file.open("r+b") as stream:
        stream.truncate(8 * (1 + 2 * 40) + 5)
    said = run_distributed(printed_run, 2, sharded, str(tmp_path / "third"), str(cache))[0]
    known = int(re.search(r"\((\d+) are known from before\)", said)[1])  # type: ignore[index]
    again = np.fromfile(file)
    # Sequences are computed whole.
    assert 35 < known <= 40 and np.array_equal(again[: 1 + 2 * known], whole[: 1 + 2 * known])
    np.testing.assert_allclose(again, whole, rtol=1e-6)


def test_a_reward_model_is_exported_as_a_classifier_with_one_output(problem: dict[str, Path], tmp_path: Path) -> None:
    """From a language model, with a head of its own; transformers alone, on padded texts, finds the loss of the last evaluation."""
    run = recipe(
        problem,
        RewardModel(),
        model=Model(path=str(problem["model"])),
        data=Data(train=str(problem["pairs"]), evaluation=str(problem["pairs"]), prefetch=0),
        checkpoint=Checkpoint(export_dtype="fp32"),
    )
    run_distributed(run_fresh, 1, [(run, str(tmp_path / "run"), None)], str(tmp_path / "cache"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    measured = [record["eval"] for record in map(json.loads, lines) if "eval" in record][-1]
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    assert scorer.config.num_labels == 1 and scorer.config.pad_token_id == tokenizer.pad_token_id
    rewards = []
    for answer in ("chosen", "rejected"):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[answer]}],
                tokenize=False,
            )
            for row in map(json.loads, problem["pairs"].read_text().splitlines())
        ]
        padded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
        with torch.no_grad():
            rewards.append(scorer(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits[:, 0])
    gaps = rewards[0] - rewards[1]
    assert measured["loss"] == pytest.approx(float(-gaps.sigmoid().log().mean()), rel=1e-5)
    assert measured["rewards/margins"] == pytest.approx(float(gaps.mean()), rel=1e-4)
    assert measured["rewards/accuracies"] == pytest.approx(float((gaps > 0).float().mean()))
