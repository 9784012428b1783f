"""States and parameters on a disk: the curve of plain PyTorch, with all weights and with adapters, and exact resume."""

from __future__ import annotations

from pathlib import Path

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


def test_a_disk_changes_no_curve(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """A run with both on the disk, continued as it is, and with the states alone there."""
    require_async_io()

    def run(tuned: str, offload: str) -> Recipe:
        tuning, optimizer = TUNINGS[tuned]
        return recipe(
            "causal_lm", tiny_llama_dir, chat_file, tuning=tuning, optimizer=optimizer, steps=STEPS,
            parallel=Parallel(
                zero_stage=3, param_persistence_threshold=100, nvme_path=str(tmp_path / "disk"), **OFFLOADS[offload]
            ),
            checkpoint=Checkpoint(every_steps=HALF, export=False),
        )  # fmt: skip

    both = "states and parameters"
    whole = {tuned: tmp_path / tuned for tuned in TUNINGS}
    run_distributed(
        run_recipe, 2, [(run(tuned, both), str(folder), None) for tuned, folder in whole.items()], timeout_s=300
    )
    resumed = {
        (tuned, offload): rewind(whole[tuned], tmp_path / f"{tuned}, {offload}", HALF)
        for tuned, offload in [*((tuned, both) for tuned in TUNINGS), ("all weights", "states")]
    }
    run_distributed(run_recipe, 2, [(run(*key), str(folder), "auto") for key, folder in resumed.items()], timeout_s=300)
    wanted = {
        "all weights": run_distributed(reference_curve, 1, run("all weights", both))[0],
        "adapters": run_distributed(judge, 1, run("adapters", both), "CAUSAL_LM")[0],
    }
    for tuned, curve in wanted.items():
        assert numbers(read_metrics(resumed[tuned, both])) == numbers(read_metrics(whole[tuned]))
        for folder in (whole[tuned], resumed.get((tuned, "states"), resumed[tuned, both])):
            records = read_metrics(folder)
            assert deviation([record["loss"] for record in records], curve.losses) < 1e-6, folder.name
            assert deviation([record["grad_norm"] for record in records], curve.norms) < 1e-5, folder.name
    assert not list((tmp_path / "disk").rglob("*.swp"))
