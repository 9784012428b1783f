"""parallel.offload_ratio and precision.communication_dtype: what DeepSpeed really does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import run_recipe
from toolkit.recipe import Checkpoint, Optimizer, Parallel, Precision, Recipe, Schedule

STEPS = 5
SPLIT = {"zero_stage": 3, "offload_optimizer": "cpu", "param_persistence_threshold": 100, "offload_ratio": 0.5}


def run_of(model: Path, data: Path, parallel: dict[str, Any], precision: Precision, **changes: Any) -> Recipe:
    host = "deepspeed" if "offload_optimizer" in parallel else "torch"
    fields: dict[str, Any] = {
        "precision": precision,
        "parallel": Parallel(**parallel),
        "optimizer": Optimizer(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.3, implementation=host),
        "schedule": Schedule(type="linear", warmup_steps=2),
        "steps": STEPS,
    }
    return recipe("causal_lm", model, data, **(fields | changes))


def on_two_devices(
    rank: int, world_size: int, runs: list[tuple[Recipe, str, str | None]]
) -> list[list[dict[str, Any]]]:
    """`run_recipe` where the device has another name than the host, as on CUDA: else DeepSpeed offloads everything."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    plain, stepped = Stage3.__init__, Stage3._optimizer_step

    def init(self: Any, *args: Any, **keywords: Any) -> None:
        plain(self, *args, **keywords)
        groups = len(self.fp16_groups)
        for index in range(int((1 - self.partial_offload) * groups)):
            self.subgroup_to_device[index] = "cpu:0"

    def step(self: Any, index: int) -> None:
        stepped(self, index)
        # The state is where the step was taken.
        owner = self.backup_optimizer if self.subgroup_to_device[index] == "cpu:0" else self.optimizer
        assert owner.state[self.fp32_partitioned_groups_flat[index]]

    Stage3.__init__, Stage3._optimizer_step = init, step
    return run_recipe(rank, world_size, runs)


def test_a_part_on_the_device_is_the_same_run(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """The schedule reaches both optimizers, and a checkpoint holds the states of both, whichever way it goes on."""
    fp32, kept = Precision(dtype="fp32"), {"checkpoint": Checkpoint(export=False, every_steps=3, keep=9)}
    split, plain = (
        run_of(tiny_llama_dir, chat_file, parallel, fp32, **kept) for parallel in (SPLIT, {"zero_stage": 2})
    )
    runs = [(plain, str(tmp_path / "plain"), None), (split, str(tmp_path / "split"), None)]
    runs += [
        (split, str(tmp_path / "to_split"), str(tmp_path / "plain" / "checkpoints" / "step-00000003")),
        (plain, str(tmp_path / "from_split"), str(tmp_path / "split" / "checkpoints" / "step-00000003")),
    ]
    straight, *others = run_distributed(on_two_devices, 2, runs)[0]
    for (_, folder, _), records in zip(runs[1:], others, strict=True):
        assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
        for record, right in zip(records, straight, strict=True):
            assert record["loss"] == pytest.approx(right["loss"], rel=1e-5), folder
            assert record["learning_rate"] == right["learning_rate"]


EXCHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "zero0": ({"zero_stage": 0}, "fp32"),
    "zero1": ({"zero_stage": 1}, "bf16"),
    "zero3": ({"zero_stage": 3}, "bf16"),
    "sequence": ({"zero_stage": 2, "sequence": 2}, "bf16"),
}
"""Name -> parallel section and parameters' format."""


def test_gradients_are_exchanged_in_the_format_asked_for(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Rounding to bf16 shows in the gradient's norm, and in nothing else: sums over micro-batches stay in fp32."""
    runs = [
        (
            run_of(tiny_llama_dir, chat_file, parallel, Precision(dtype=dtype, communication_dtype=exchanged), steps=3),
            name,
        )
        for name, (parallel, dtype) in EXCHANGES.items()
        for exchanged in ("fp32", "bf16")
    ]
    places = [(run, str(tmp_path / f"{index}-{name}"), None) for index, (run, name) in enumerate(runs)]
    found = run_distributed(run_recipe, 2, places)[0]
    for index, name in enumerate(EXCHANGES):
        exact, rounded = found[2 * index], found[2 * index + 1]
        for one, other in zip(exact, rounded, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5), name
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2.0**-8), name
        assert exact[0]["grad_norm"] != rounded[0]["grad_norm"], name
