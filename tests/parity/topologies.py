"""Topologies that read one another's checkpoints, and the runs that write and continue them."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER, recipe
from tests.parity.worker import run_recipe
from toolkit.checkpoint.manifest import complete_steps, folder_name
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, LoRA, Recipe

TOPOLOGIES: dict[str, Strategy] = {
    "zero0": Strategy(1, STRATEGIES["zero0"].fields),
    **{name: STRATEGIES[name] for name in ("zero3", "zero2_offload", "pp2", "tp2", "sp2_zero3", "pp2_dp2", "pp2_tp2")},
}
"""Name -> ranks and parallel section: one rank, two, four; every kind of cut and two mixtures."""


ADAPTERS: dict[str, Any] = {
    "tuning": LoRA(rank=4, modules_to_save=("input_layernorm",)),
    "optimizer": OPTIMIZER.model_copy(update={"learning_rate": 1e-2}),
}
"""Fields of a recipe that trains adapters, with norms trained whole, at a rate at which both move."""


def resumable(model: Path, data: Path, strategy: Strategy, /, *, steps: int, half: int, **changes: Any) -> Recipe:
    """`steps` steps in fp32 with a checkpoint after `half`; micro-batches of one sequence, so accumulation differs."""
    values = {
        "parallel": strategy.parallel,
        "checkpoint": Checkpoint(every_steps=half, export=False),
        "batch": Batch(global_size=4, micro_size=1, sequence_length=128),
        "steps": steps,
    }
    return recipe("causal_lm", model, data, **{**values, **changes})


@dataclass(frozen=True)
class Run:
    """One start of a run."""

    recipe: Recipe
    world_size: int
    folder: Path
    resume: str | None = None


def train_all(runs: Iterable[Run]) -> None:
    """Train each run, those of one world size one after the other in the same ranks."""
    by_size: dict[int, list[tuple[Recipe, str, str | None]]] = defaultdict(list)
    for run in runs:
        by_size[run.world_size].append((run.recipe, str(run.folder), run.resume))
    for world_size, some in sorted(by_size.items()):
        run_distributed(run_recipe, world_size, some, timeout_s=560)


def train_pairs(
    topologies: Mapping[str, Strategy],
    recipes: Mapping[str, Recipe],
    pairs: Iterable[tuple[str, str]],
    half: int,
    folder: Path,
) -> None:
    """Train every topology to the end (folder/NAME); continue its checkpoint `half` as another (folder/WRITER--READER)."""
    train_all(Run(recipes[name], strategy.world_size, folder / name) for name, strategy in topologies.items())
    train_all(
        Run(
            recipes[reader],
            topologies[reader].world_size,
            rewind(folder / writer, folder / f"{writer}--{reader}", half),
            "auto",
        )
        for writer, reader in pairs
    )


def rewind(source: Path, target: Path, step: int) -> Path:
    """A copy of a run as it was when checkpoint `step` had just been written (metrics of later steps included)."""
    shutil.copytree(source, target)
    for later in complete_steps(target / "checkpoints"):
        if later > step:
            shutil.rmtree(target / "checkpoints" / folder_name(later))
    return target


def worst(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> float:
    """Largest relative difference of the losses."""
    assert [record["step"] for record in found] == [record["step"] for record in wanted]
    return deviation([record["loss"] for record in found], [record["loss"] for record in wanted])


def numbers(records: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """What must not differ by a bit."""
    return [(record["loss"], record["grad_norm"], record["learning_rate"]) for record in records]
