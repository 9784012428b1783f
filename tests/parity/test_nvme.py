"""States and parameters on a disk: the curve of plain PyTorch, with all weights and with adapters, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.async_io import require_async_io
from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER, recipe
from tests.parity.test_lora import FAST, TUNING, judge
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import read_metrics, reference_curve, run_recipe
from toolkit.parity.report import deviation
from toolkit.recipe import Checkpoint, Full, Parallel, Recipe

STEPS, HALF = 4, 2
TUNINGS = {"all weights": (Full(), OPTIMIZER), "adapters": (TUNING, FAST)}
OFFLOADS = {
    "states": {"offload_optimizer": "nvme"},
    "states and parameters": {"offload_optimizer": "nvme", "offload_param": "nvme"},
}


@pytest.mark.parametrize("tuned", TUNINGS)
def test_a_disk_changes_no_curve(tuned: str, tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    require_async_io()
    tuning, optimizer = TUNINGS[tuned]

    def run(**parallel: Any) -> Recipe:
        return recipe(
            "causal_lm", tiny_llama_dir, chat_file, tuning=tuning, optimizer=optimizer, steps=STEPS,
            parallel=Parallel(zero_stage=3, param_persistence_threshold=100, **parallel),
            checkpoint=Checkpoint(every_steps=HALF, export_dtype="fp32"),
        )  # fmt: skip

    runs = {name: run(nvme_path=str(tmp_path / "disk"), **fields) for name, fields in OFFLOADS.items()}
    whole = tmp_path / "whole"
    run_distributed(run_recipe, 2, [(runs["states and parameters"], str(whole), None)], timeout_s=300)
    resumed = {name: rewind(whole, tmp_path / name, HALF) for name in runs}
    run_distributed(
        run_recipe, 2, [(runs[name], str(folder), "auto") for name, folder in resumed.items()], timeout_s=300
    )
    wanted = (
        run_distributed(judge, 1, run(), "CAUSAL_LM")
        if tuned == "adapters"
        else run_distributed(reference_curve, 1, run())
    )[0]
    for folder in (whole, *resumed.values()):
        records = read_metrics(folder)
        assert deviation([record["loss"] for record in records], wanted.losses) < 1e-6, folder.name
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < 1e-5, folder.name
    assert numbers(read_metrics(resumed["states and parameters"])) == numbers(read_metrics(whole))
    assert not list((tmp_path / "disk").rglob("*.swp"))
