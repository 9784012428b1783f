"""A resumed run is the unbroken run: bit for bit on the same topology, within 1e-5 on any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER
from tests.parity.topologies import numbers, resumable, rewind, train_pairs, worst
from tests.parity.worker import read_metrics, run_recipe
from tests.processor import require_number_format
from tests.tiny import write_lines
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Optimizer, Precision, Recipe, Schedule

TOPOLOGIES: dict[str, Strategy] = {
    "zero0-1": Strategy(1, STRATEGIES["zero0"].fields),
    "zero1-2": STRATEGIES["zero1"],
    "zero2_offload-2": STRATEGIES["zero2_offload"],
    "zero3-2": STRATEGIES["zero3"],
    "zero3_offload-1": Strategy(1, STRATEGIES["zero3_offload_param"].fields),
}
"""Name -> ranks and parallel section."""

HALF, FULL = 10, 20
Runs = list[tuple[Recipe, str, str | None]]


def make_recipe(model: Path, data: Path, name: str, **changes: Any) -> Recipe:
    """Twenty steps with a checkpoint in the middle."""
    return resumable(model, data, TOPOLOGIES[name], steps=FULL, half=HALF, **changes)


def test_any_topology_continues_any_other(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """10 + 10 steps equal 20 straight, fp32: every two topologies one way round, and each read by itself."""
    make = {name: make_recipe(tiny_llama_dir, chat_file, name) for name in TOPOLOGIES}
    names = list(TOPOLOGIES)
    pairs = [(old, names[(index + shift) % len(names)]) for index, old in enumerate(names) for shift in range(3)]
    train_pairs(TOPOLOGIES, make, pairs, HALF, tmp_path)
    for old, new in pairs:
        found, straight = read_metrics(tmp_path / f"{old}--{new}"), read_metrics(tmp_path / old)
        assert worst(found, straight) < 1e-5, (old, new)
        if old == new:
            assert numbers(found) == numbers(straight), old


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bit_resumes_bit_for_bit(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path, dtype: Any) -> None:
    """Loss scale, masters and moments come back exactly."""
    require_number_format(dtype)
    name = "zero3-2"
    scaling = {"initial_scale_power": 8, "loss_scale_window": 4} if dtype == "fp16" else {}
    run = make_recipe(tiny_llama_dir, chat_file, name, precision=Precision(dtype=dtype, **scaling))
    run_distributed(run_recipe, 2, [(run, str(tmp_path / "straight"), None)])
    again = rewind(tmp_path / "straight", tmp_path / "again", HALF)
    run_distributed(run_recipe, 2, [(run, str(again), "auto")])
    straight, found = read_metrics(tmp_path / "straight"), read_metrics(again)
    assert numbers(found) == numbers(straight)
    if dtype == "fp16":
        scales = [record["loss_scale"] for record in straight]
        assert scales[-1] > scales[0]
        assert [record["loss_scale"] for record in found] == scales


KINDS: dict[str, dict[str, Any]] = {
    "sgd_momentum": {"max_grad_norm": 0.5},
    "adagrad": {"max_grad_norm": 0.5},
    "rmsprop": {"momentum": 0.5},
    "adam": {"max_grad_norm": 0.5, "implementation": "torch"},
    "muon": {"max_grad_norm": 0.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_state_survives_a_change_of_topology(
    kind: Any, tiny_llama_dir: Path, chat_file: Path, tmp_path: Path
) -> None:
    """zero1 on two ranks, continued as zero3 on two and as zero2 with offload."""
    optimizer = Optimizer(type=kind, learning_rate=3e-3, weight_decay=0.1, **KINDS[kind])
    offloads = kind != "adagrad"  # with offload DeepSpeed's own kernel runs, which rounds differently
    targets = ["zero1-2", "zero3-2"] + (["zero2_offload-2"] if offloads else [])
    make = {name: make_recipe(tiny_llama_dir, chat_file, name, optimizer=optimizer) for name in targets}
    run_distributed(run_recipe, 2, [(make["zero1-2"], str(tmp_path / "straight"), None)])
    straight = read_metrics(tmp_path / "straight")
    runs: Runs = [(make[name], str(rewind(tmp_path / "straight", tmp_path / name, HALF)), "auto") for name in targets]
    run_distributed(run_recipe, 2, runs, timeout_s=200)
    assert numbers(read_metrics(tmp_path / "zero1-2")) == numbers(straight)
    # Muon orthogonalises in bf16, where a last bit of the input can move the result.
    tolerance = 1e-3 if kind == "muon" else 1e-5
    for name in targets:
        assert worst(read_metrics(tmp_path / name), straight) < tolerance, name


def answers(path: Path, answer: str) -> Path:
    """Forty questions, all answered alike."""
    return write_lines(path, [{"prompt": f"Question {number}?", "completion": answer} for number in range(40)])


def test_plateau_and_noise_resume_exactly(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """The plateau's memory, the noise of NEFTune and the learning rate come back."""
    base = make_recipe(tiny_llama_dir, answers(tmp_path / "left.jsonl", "left " * 9), "zero1-2")
    # What it learns is wrong for the held-out questions, so the evaluation loss must rise and the rate must drop.
    held_out = answers(tmp_path / "right.jsonl", "right " * 9)
    run = Recipe(
        **{
            **dict(base),
            "data": base.data.model_copy(update={"evaluation": str(held_out)}),
            "task": base.task.model_copy(update={"neftune_alpha": 5.0, "label_smoothing": 0.1}),
            "schedule": Schedule(type="reduce_on_plateau", patience=0, gamma=0.5),
            "evaluation": base.evaluation.model_copy(update={"every_steps": 2}),
            "optimizer": OPTIMIZER.model_copy(update={"learning_rate": 0.02}),
        }
    )
    run_distributed(run_recipe, 2, [(run, str(tmp_path / "straight"), None)])
    again = rewind(tmp_path / "straight", tmp_path / "again", HALF)
    run_distributed(run_recipe, 2, [(run, str(again), "auto")])
    straight = read_metrics(tmp_path / "straight")
    rates = [record["learning_rate"] for record in straight]
    assert rates[HALF - 1] < rates[0] and rates[-1] < rates[HALF - 1], "the plateau must drop the rate in both halves"
    assert numbers(read_metrics(again)) == numbers(straight)
