"""Compiled layers in whole runs, under every strategy: the curve of plain PyTorch, and code made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import reference_curve, run_recipe
from toolkit.models import compile as compilation
from toolkit.parity.report import deviation as curve_deviation
from toolkit.recipe import Batch, Model, Parallel, Recipe

STEPS, LAYERS = 4, 2
TOLERANCE = 1e-5

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero0": ({"activation_checkpointing": True}, {"zero_stage": 0}),
    "zero2": ({"activation_checkpointing": True, "mlp_tiles": 3}, {"zero_stage": 2}),
    "zero3": ({"attention": "eager"}, {"zero_stage": 3, "param_persistence_threshold": 100}),
    "pp2": ({"activation_checkpointing": True}, {"zero_stage": 1, "pipeline": 2}),
    "sp2, zero3": (
        {"activation_checkpointing": True},
        {"zero_stage": 3, "param_persistence_threshold": 100, "sequence": 2},
    ),
}
"""Name -> model and parallel sections."""


class Counted:
    """A backend of torch.compile that counts how often its code runs: torch's graphs as they are, or with its autograd."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        code = lookup_backend(self.backend)(graph, inputs)

        def run(*args: Any) -> Any:
            self.calls += 1
            return code(*args)

        return run


def run_compiled(rank: int, world_size: int, runs: list[tuple[Recipe, str, None]]) -> list[tuple[list[float], int]]:
    """Losses of each run and how many calls of compiled code they took."""
    # The ranks of tests have it switched off, for Muon's sake.
    os.environ.pop("TORCHDYNAMO_DISABLE")
    backends = {name: Counted(name) for name in ("eager", "aot_eager")}
    found = []
    for run in runs:
        # What ZeRO-3 frees is what code made by torch's autograd could hold on to.
        is_whole = run[0].parallel.zero_stage == 3 and run[0].parallel.sequence == 1
        compilation.BACKEND = counted = backends["aot_eager" if is_whole else "eager"]
        before = counted.calls
        (records,) = run_recipe(rank, world_size, [run])
        found.append(([record["loss"] for record in records], counted.calls - before))
    return found


def test_compiled_layers_keep_the_curve(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Packed documents, clipping that bites, two micro-batches, two ranks: 4 steps within 1e-5 of plain PyTorch."""

    def run(model: dict[str, Any], parallel: dict[str, Any]) -> Recipe:
        together = parallel.get("sequence", 1) * parallel.get("tensor", 1) * parallel.get("pipeline", 1)
        return recipe(
            "causal_lm",
            tiny_llama_dir,
            chat_file,
            model=Model(path=str(tiny_llama_dir), compile=True, **model),
            batch=Batch(global_size=8, micro_size=2 * together, sequence_length=128),
            parallel=Parallel(**parallel),
            steps=STEPS,
        )

    runs = {name: run(*sections) for name, sections in RUNS.items()}
    (wanted,) = run_distributed(reference_curve, 1, next(iter(runs.values())))
    trained = [(run, str(tmp_path / name.replace(", ", "-")), None) for name, run in runs.items()]
    results = run_distributed(run_compiled, 2, trained, timeout_s=300)[0]
    for name, (losses, calls) in zip(runs, results, strict=True):
        assert curve_deviation(losses, wanted.losses) < TOLERANCE, name
        assert calls >= STEPS * LAYERS, name
