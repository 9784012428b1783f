"""Compiled layers in whole runs, under every strategy: the curve of plain PyTorch, and code made once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import reference_curve, run_recipe
from toolkit.models import compile as compilation
from toolkit.parity.report import deviation as curve_deviation
from toolkit.recipe import Batch, Model, Parallel, Recipe

STEPS = 4
TOLERANCE = 1e-5

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero0": ({"activation_checkpointing": True}, {"zero_stage": 0}),
    "zero1, sdpa": ({"attention": "sdpa"}, {"zero_stage": 1}),
    "zero2": ({"activation_checkpointing": True, "mlp_tiles": 3}, {"zero_stage": 2}),
    "zero3": ({}, {"zero_stage": 3, "param_persistence_threshold": 100}),
    "zero3, recomputed": ({"activation_checkpointing": True}, {"zero_stage": 3, "param_persistence_threshold": 100}),
    "pp2": ({"activation_checkpointing": True}, {"zero_stage": 1, "pipeline": 2}),
    "tp2": ({}, {"zero_stage": 1, "tensor": 2}),
    "sp2, zero3": (
        {"activation_checkpointing": True},
        {"zero_stage": 3, "param_persistence_threshold": 100, "sequence": 2},
    ),
}
"""Name -> model and parallel sections."""


def run_compiled(rank: int, world_size: int, runs: list[tuple[Recipe, str, None]]) -> list[tuple[list[float], int]]:
    """Losses of each run, and how many graphs it compiled. Everything of torch.compile but the code generator."""
    compilation.BACKEND = "aot_eager"
    # The ranks of tests have it switched off, for Muon's sake.
    os.environ.pop("TORCHDYNAMO_DISABLE")
    found = []
    for run in runs:
        torch._dynamo.reset()
        before = compilation.count_compiled()
        (records,) = run_recipe(rank, world_size, [run])
        found.append(([record["loss"] for record in records], compilation.count_compiled() - before))
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
    for name, (losses, graphs) in zip(runs, run_distributed(run_compiled, 2, trained, timeout_s=300)[0], strict=True):
        assert curve_deviation(losses, wanted.losses) < TOLERANCE, name
        assert 0 < graphs, name
        print(name, graphs)
