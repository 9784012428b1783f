"""One loss curve whatever the strategy: every ZeRO stage and offload against plain single-process PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, precision, recipe, worlds
from tests.parity.worker import reference_curve, run_recipe
from tests.processor import require_number_format
from toolkit.parity.problem import Curves
from toolkit.parity.reference import Curve
from toolkit.parity.report import SPREAD, deviation, spread
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Task
from toolkit.recipe.mesh import DEGREES

TASKS = ("causal_lm", "sequence_classification")
LAYOUTS = {
    "causal_lm": [(1, 1), (1, 4), (2, 1), (2, 4), (4, 4)],
    "sequence_classification": [(1, 1), (1, 4), (2, 1), (2, 4), (4, 4)],
}
"""Task -> (world size, micro-batches per replica and step), for a global batch of GLOBAL_SIZE."""

LIMITS = {"fp32": (1e-6, 2e-6), "bf16": (1e-3, 2e-2), "fp16": (2e-4, 5e-3)}
"""Number format -> largest deviation of losses and of gradient norms: three times what benchmarks/parity_table.py finds."""

WHOLE_MODELS = ("zero0", "zero2_offload", "zero3_offload_param")
DIVIDED_MODELS = ("pp2", "tp2", "sp2")
MIXED = ("pp2_tp2", "tp2_zero3")
LAYERS = 2
"""Of the tests' models."""
STEPS = 6
"""Optimizer steps, three of them warm-up; benchmarks/parity_table.py takes 20."""


def having(task: str, dtype: str, layout: tuple[int, int]) -> dict[str, Strategy]:
    """Strategies that are trained in this layout: all of them for one task in fp32 with two ranks and accumulation,
    and what is possible on four ranks; elsewhere one of each kind. The rest is left to benchmarks/parity_table.py."""
    world_size, accumulation = layout
    chosen = WHOLE_MODELS
    if world_size > 1 and accumulation > 1:
        is_all = task == "causal_lm" and dtype == "fp32"
        chosen = tuple(STRATEGIES) if is_all else (*WHOLE_MODELS, *DIVIDED_MODELS, *MIXED)
    fitting = {name: STRATEGIES[name] for name in chosen if world_size in worlds(STRATEGIES[name])}
    cuts = {name: {degree for degree in DEGREES if fitting[name].degree(degree) > 1} for name in fitting}
    return {
        name: strategy
        for name, strategy in fitting.items()
        if strategy.degree("pipeline") <= LAYERS and cuts[name] <= Task.kind(task).cuts
    }


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
                steps=STEPS,
            ),
            str(folder / name),
            None,
        )
        for name, strategy in chosen.items()
    ]
    found = run_distributed(run_recipe, world_size, runs, timeout_s=560)[0]
    return dict(zip(chosen, found, strict=True))


@pytest.fixture(scope="module")
def reference(problems: dict[str, tuple[Path, Path]]) -> Callable[[str, str], Curve]:
    """(task, number format) -> what plain PyTorch makes of it, once."""

    @functools.cache
    def curve(task: str, dtype: str) -> Curve:
        wanted = recipe(task, *problems[task], precision=precision(dtype), steps=STEPS)
        return run_distributed(reference_curve, 1, wanted)[0]  # type: ignore[no-any-return]

    return curve


@pytest.mark.parametrize(
    ("task", "layout"),
    [(task, layout) for task in TASKS for layout in LAYOUTS[task]],
    ids=lambda value: value if isinstance(value, str) else f"world{value[0]}-accumulation{value[1]}",
)
def test_fp32_equals_plain_pytorch(
    task: str,
    layout: tuple[int, int],
    problems: dict[str, tuple[Path, Path]],
    reference: Callable[[str, str], Curve],
    tmp_path: Path,
) -> None:
    """Losses and gradient norms of every step within 1e-6 and 2e-6, relative."""
    wanted = reference(task, "fp32")
    assert max(wanted.norms) > 2 * OPTIMIZER.max_grad_norm, "clipping must bite"
    for name, records in curves(problems[task], task, "fp32", layout, tmp_path).items():
        assert deviation([record["loss"] for record in records], wanted.losses) < LIMITS["fp32"][0], name
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < LIMITS["fp32"][1], name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_16_bit_strategies_agree(
    task: str,
    dtype: str,
    problems: dict[str, tuple[Path, Path]],
    reference: Callable[[str, str], Curve],
    tmp_path: Path,
) -> None:
    """Near plain PyTorch on the same micro-batches, and any two within 1e-3 of each other (all layouts: benchmarks/)."""
    require_number_format(dtype)
    wanted = reference(task, dtype)
    found = curves(problems[task], task, dtype, (2, 4), tmp_path)
    for name, records in found.items():
        assert deviation([record["loss"] for record in records], wanted.losses) < LIMITS[dtype][0], name
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < LIMITS[dtype][1], name
    apart = spread([Curves([record["loss"] for record in records], []) for records in found.values()])
    assert apart is not None and apart < SPREAD
