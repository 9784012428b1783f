"""The tasks of encoders: losses, gradients and metrics of plain PyTorch on texts one by one, whatever the strategy; exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, recipe
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import read_metrics, reference_curve, run_recipe
from tests.tiny import documented, write_lines
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, MaskedLM, Recipe, Task

STEPS, HALF = 6, 3
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""


def texts() -> list[dict[str, Any]]:
    """Texts of very different lengths."""
    return [{"text": text[: 30 + 41 * (number % 9)]} for number, (_, _, text) in enumerate(documented()[:96])]


CASES: dict[str, tuple[Task, list[dict[str, Any]], dict[str, Any]]] = {
    "masked_lm": (MaskedLM(), texts(), {}),
    "masked_lm-packed": (MaskedLM(whole_word=True, mask_probability=0.3), texts(), {"packing": True}),
}
"""Name -> the task, its rows, and what of the data section is not as by default."""

CHOSEN = {
    "zero0-1": Strategy(1, STRATEGIES["zero0"].fields),
    **{f"{name}-2": STRATEGIES[name] for name in ("zero1", "zero2", "zero3")},
}


def problem(name: str, model: Path, folder: Path, strategy: str, **changes: Any) -> Recipe:
    """The recipe of a case, with ragged micro-batches."""
    task, rows, data = CASES[name]
    file = folder / f"{name}.jsonl"
    if not file.exists():
        write_lines(file, rows)
    chosen = CHOSEN[strategy]
    values = {
        "task": task,
        "data": Data(**{"train": str(file), "packing": False, "prefetch": 0, "evaluation_examples": 13, **data}),
        "batch": Batch(
            global_size=GLOBAL_SIZE, micro_size=micro_size(chosen, chosen.world_size, 2), sequence_length=128
        ),
        "evaluation": Evaluation(every_steps=HALF),
        "parallel": chosen.parallel,
        "checkpoint": Checkpoint(every_steps=HALF, export=False),
        "steps": STEPS,
    }
    return recipe(task.name, model, file, **{**values, **changes})


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {record["step"]: record["eval"] for record in lines if "eval" in record}


@pytest.mark.parametrize("name", CASES)
def test_one_curve_and_one_figure_on_every_topology(name: str, tiny_bert_dir: Path, tmp_path: Path) -> None:
    """Every step's loss and gradient norm, and every evaluation; a resumed run is the unbroken one, bit for bit."""
    runs = {strategy: problem(name, tiny_bert_dir, tmp_path, strategy) for strategy in CHOSEN}
    wanted = run_distributed(reference_curve, 1, runs["zero0-1"])[0]
    assert max(wanted.norms) > 1.1 * OPTIMIZER.max_grad_norm, "clipping must bite"
    for size in (1, 2):
        some = [
            (run, str(tmp_path / strategy), None) for strategy, run in runs.items() if CHOSEN[strategy].world_size == size
        ]
        run_distributed(run_recipe, size, some, timeout_s=300)
    for strategy in CHOSEN:
        records = read_metrics(tmp_path / strategy)
        assert deviation([record["loss"] for record in records], wanted.losses) < LOSSES, strategy
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < NORMS, strategy
        found, one = evaluations(tmp_path / strategy), evaluations(tmp_path / "zero0-1")
        assert sorted(found) == [0, HALF, STEPS]
        for step, metrics in found.items():
            assert metrics == pytest.approx(one[step], rel=1e-5), (strategy, step)
    again = rewind(tmp_path / "zero2-2", tmp_path / "again", HALF)
    run_distributed(run_recipe, 2, [(runs["zero2-2"], str(again), "auto")])
    assert numbers(read_metrics(again)) == numbers(read_metrics(tmp_path / "zero2-2"))
