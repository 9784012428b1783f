"""One loss curve whatever the strategy: every ZeRO stage and offload against plain single-process PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, recipe, worlds
from tests.parity.worker import global_batches, run_recipe
from toolkit.parity.reference import train as train_reference
from toolkit.parity.report import SPREAD, TOLERANCES, deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Precision, Recipe
from toolkit.recipe.schedules import factor

TASKS = ("causal_lm", "sequence_classification")
LAYOUTS = {
    "causal_lm": [(1, 1), (1, 4), (2, 1), (2, 4), (4, 4)],
    "sequence_classification": [(1, 1), (1, 4), (2, 1), (2, 4)],
}
"""Task -> (world size, micro-batches per replica and step), for a global batch of GLOBAL_SIZE."""


IN_16_BITS = ("zero1", "zero2_offload", "zero3", "zero3_offload_param", "pp2", "tp2", "sp2")
"""One of each kind; all of them, four stages and eight ranks are left to benchmarks/parity_table.py."""


def having(task: str, dtype: str, layout: tuple[int, int]) -> dict[str, Strategy]:
    """Strategies of `task` that have this layout."""
    world_size, accumulation = layout
    return {
        name: strategy
        for name, strategy in STRATEGIES.items()
        if world_size in worlds(strategy)
        and strategy.degree("pipeline") <= 2
        and (strategy.ranks_per_replica == 1 or (task == "causal_lm" and accumulation > 1))
        and (dtype == "fp32" or name in IN_16_BITS)
    }


def reference_curve(rank: int, world_size: int, run: Recipe) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the judge."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    inputs, steps = global_batches(run, run.steps or 0)
    if run.task.name == "causal_lm":
        model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
    else:
        torch.manual_seed(run.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            run.model.path, config=inputs.model_config, dtype=torch.float32
        )
    curve = train_reference(
        model,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: OPTIMIZER.learning_rate * factor(run.schedule, step, run.steps or 0),
        dtype=run.precision.dtype,
        max_grad_norm=OPTIMIZER.max_grad_norm,
        weight_decay=OPTIMIZER.weight_decay,
    )
    return curve.losses, curve.norms


@pytest.fixture(scope="module")
def problems(
    tiny_llama_dir: Path, tiny_bert_dir: Path, chat_file: Path, classification_file: Path
) -> dict[str, tuple[Path, Path]]:
    """Task -> model and data."""
    return dict(zip(TASKS, [(tiny_llama_dir, chat_file), (tiny_bert_dir, classification_file)], strict=True))


def curves(
    problem: tuple[Path, Path], task: str, dtype: str, layout: tuple[int, int], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Metrics of every strategy that has this layout, trained one after the other by the same ranks."""
    world_size, accumulation = layout
    chosen = having(task, dtype, layout)
    runs = [
        (
            recipe(
                task,
                *problem,
                batch=Batch(
                    global_size=GLOBAL_SIZE,
                    micro_size=micro_size(strategy, world_size, accumulation),
                    sequence_length=128,
                ),
                parallel=strategy.parallel,
                precision=precision(dtype),
            ),
            str(folder / name),
            None,
        )
        for name, strategy in chosen.items()
    ]
    found = run_distributed(run_recipe, world_size, runs, timeout_s=560)[0]
    return dict(zip(chosen, found, strict=True))


def precision(dtype: Any) -> Precision:
    """No overflow in the first steps: the reference does not skip any."""
    return Precision(dtype=dtype, initial_scale_power=8)


@pytest.mark.parametrize(
    ("task", "layout"),
    [(task, layout) for task in TASKS for layout in LAYOUTS[task]],
    ids=lambda value: value if isinstance(value, str) else f"world{value[0]}-accumulation{value[1]}",
)
def test_fp32_equals_plain_pytorch(
    task: str, layout: tuple[int, int], problems: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Losses and gradient norms of 20 steps within 1e-5, relative."""
    losses, norms = run_distributed(reference_curve, 1, recipe(task, *problems[task]))[0]
    assert max(norms) > 2 * OPTIMIZER.max_grad_norm, "clipping must bite"
    for name, records in curves(problems[task], task, "fp32", layout, tmp_path).items():
        assert deviation([record["loss"] for record in records], losses) < TOLERANCES["fp32"], name
        assert deviation([record["grad_norm"] for record in records], norms) < TOLERANCES["fp32"], name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_16_bit_strategies_agree(task: str, dtype: str, problems: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Within 2e-2 of plain PyTorch on the same micro-batches, and within 1e-3 of each other (all layouts: benchmarks/)."""
    wanted = recipe(task, *problems[task], precision=precision(dtype))
    losses, norms = run_distributed(reference_curve, 1, wanted)[0]
    found = curves(problems[task], task, dtype, (2, 4), tmp_path)
    for name, records in found.items():
        assert deviation([record["loss"] for record in records], losses) < TOLERANCES[dtype], name
        assert deviation([record["grad_norm"] for record in records], norms) < TOLERANCES[dtype], name
    ours = [[record["loss"] for record in records] for records in found.values()]
    assert max(deviation(other, ours[0]) for other in ours) < SPREAD
