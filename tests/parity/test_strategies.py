"""One loss curve whatever the strategy: every ZeRO stage and offload against plain single-process PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, precision, recipe, worlds
from tests.parity.worker import reference_curve, run_recipe
from tests.processor import require_number_format
from toolkit.parity.report import SPREAD, TOLERANCES, deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch

TASKS = ("causal_lm", "sequence_classification")
LAYOUTS = {
    "causal_lm": [(1, 1), (1, 4), (2, 1), (2, 4), (4, 4)],
    "sequence_classification": [(1, 1), (1, 4), (2, 1), (2, 4)],
}
"""Task -> (world size, micro-batches per replica and step), for a global batch of GLOBAL_SIZE."""


WHOLE_MODELS = ("zero0", "zero2_offload", "zero3_offload_param")
DIVIDED_MODELS = ("pp2", "tp2", "sp2")
LAYERS = 2
"""Of the tests' models."""


def having(task: str, dtype: str, layout: tuple[int, int]) -> dict[str, Strategy]:
    """Strategies that are trained in this layout: all of them for one task in fp32 with two ranks and accumulation,
    and what is possible on four ranks; elsewhere one of each kind. The rest is left to benchmarks/parity_table.py."""
    world_size, accumulation = layout
    chosen = WHOLE_MODELS
    if task == "causal_lm" and world_size > 1 and accumulation > 1:
        chosen = (*WHOLE_MODELS, *DIVIDED_MODELS) if dtype != "fp32" else tuple(STRATEGIES)
    fitting = [name for name in chosen if world_size in worlds(STRATEGIES[name])]
    return {name: STRATEGIES[name] for name in fitting if STRATEGIES[name].degree("pipeline") <= LAYERS}


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


@pytest.mark.parametrize(
    ("task", "layout"),
    [(task, layout) for task in TASKS for layout in LAYOUTS[task]],
    ids=lambda value: value if isinstance(value, str) else f"world{value[0]}-accumulation{value[1]}",
)
def test_fp32_equals_plain_pytorch(
    task: str, layout: tuple[int, int], problems: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Losses and gradient norms of 20 steps within 1e-5, relative."""
    (reference,) = run_distributed(reference_curve, 1, recipe(task, *problems[task]))
    assert max(reference.norms) > 2 * OPTIMIZER.max_grad_norm, "clipping must bite"
    for name, records in curves(problems[task], task, "fp32", layout, tmp_path).items():
        assert deviation([record["loss"] for record in records], reference.losses) < TOLERANCES["fp32"], name
        assert deviation([record["grad_norm"] for record in records], reference.norms) < TOLERANCES["fp32"], name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_16_bit_strategies_agree(task: str, dtype: str, problems: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Within 2e-2 of plain PyTorch on the same micro-batches, and within 1e-3 of each other (all layouts: benchmarks/)."""
    require_number_format(dtype)
    wanted = recipe(task, *problems[task], precision=precision(dtype))
    (reference,) = run_distributed(reference_curve, 1, wanted)
    found = curves(problems[task], task, dtype, (2, 4), tmp_path)
    for name, records in found.items():
        assert deviation([record["loss"] for record in records], reference.losses) < TOLERANCES[dtype], name
        assert deviation([record["grad_norm"] for record in records], reference.norms) < TOLERANCES[dtype], name
    ours = [[record["loss"] for record in records] for records in found.values()]
    assert max(deviation(other, ours[0]) for other in ours) < SPREAD
