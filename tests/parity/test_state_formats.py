"""Master weights and optimizer states in bf16: the same as plain PyTorch that keeps them so, and interchangeable on resume."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import export_weights, global_batches, run_recipe
from toolkit.parity.reference import train as train_reference
from toolkit.recipe import Checkpoint, Optimizer, Parallel, Precision, Recipe, Schedule
from toolkit.recipe.schedules import factor

STEPS = 5


class AdamW(torch.optim.Optimizer):
    """Loshchilov and Hutter 2019, computed in fp32 on numbers that are stored in the parameter's format, states in `state_dtype`."""

    def __init__(self, groups: Any, state_dtype: torch.dtype) -> None:
        super().__init__(groups, {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8})
        self.state_dtype = state_dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(weight, dtype=self.state_dtype)}
                    state["v"] = torch.zeros_like(state["m"])
                state["step"] += 1
                gradient, value = weight.grad.float(), weight.float() * (1 - group["lr"] * group["weight_decay"])
                m = first * state["m"].float() + (1 - first) * gradient
                v = second * state["v"].float() + (1 - second) * gradient**2
                denominator = (v / (1 - second ** state["step"])).sqrt() + group["eps"]
                weight.copy_(value - group["lr"] / (1 - first ** state["step"]) * m / denominator)
                state["m"].copy_(m)
                state["v"].copy_(v)


def plain(rank: int, world_size: int, run: Recipe, state_dtype: torch.dtype) -> tuple[list[float], dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    _, steps = global_batches(run, STEPS)
    model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
    curve = train_reference(
        model,
        steps,
        lambda groups: AdamW(groups, state_dtype),
        lambda step: run.optimizer.learning_rate * factor(run.schedule, step, STEPS),
        dtype="bf16",
        master_dtype="bf16",
        max_grad_norm=run.optimizer.max_grad_norm,
        weight_decay=run.optimizer.weight_decay,
    )
    return curve.losses, curve.weights


BF16 = Precision(dtype="bf16", master_dtype="bf16", state_dtype="bf16")
FP32_STATES = Precision(dtype="bf16", master_dtype="bf16", state_dtype="fp32")
EIGHT = Precision(dtype="bf16", state_dtype="8bit")
EIGHT_BF16 = Precision(dtype="bf16", master_dtype="bf16", state_dtype="8bit")
SUMS = Precision(dtype="bf16", master_dtype="bf16", state_dtype="bf16", accumulation_dtype="bf16")


def run_of(model: Path, data: Path, parallel: dict[str, Any], precision: Precision, **changes: Any) -> Recipe:
    """Weights that move, and so do their last digits."""
    host = "deepspeed" if parallel.get("offload_optimizer") == "cpu" else "auto"
    fields: dict[str, Any] = {
        "precision": precision,
        "parallel": Parallel(**parallel),
        "optimizer": Optimizer(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.3, implementation=host),
        "checkpoint": Checkpoint(export=True, export_dtype="fp32", keep=9, every_steps=3),
        "steps": STEPS,
    }
    return recipe("causal_lm", model, data, **(fields | changes))


ZERO3 = {"zero_stage": 3, "param_persistence_threshold": 100}
CASES: dict[str, tuple[dict[str, Any], Precision]] = {
    "zero3": (ZERO3, BF16),
    "pipeline": ({"zero_stage": 1, "pipeline": 2}, SUMS),
    "zero2_offload": ({"zero_stage": 2, "offload_optimizer": "cpu"}, BF16),
    "zero3_offload_fp32": ({"zero_stage": 3, "offload_optimizer": "cpu"}, FP32_STATES),
}

LOSS_TOLERANCE = 2e-5
"""Relative. The judge takes its loss in fp64, so gradients near a tie of bf16 round to the other side here."""

SAME = 0.85
"""Share of the weights that are the same number after five steps; the others went to the neighbouring one. Masters in
fp32 have none in common with them."""

ULP = 2.0**-8
"""Largest distance of neighbouring bf16 numbers, relative."""


def test_five_steps_equal_plain_torch(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """bf16 masters, with bf16 and with fp32 states, under ZeRO 1-3, in a pipeline and offloaded."""
    runs = {name: run_of(tiny_llama_dir, chat_file, *case) for name, case in CASES.items()}
    first = next(iter(runs.values()))
    judges = {
        kept: run_distributed(plain, 1, first, dtype)[0]
        for kept, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items()
    }
    found = run_distributed(run_recipe, 2, [(run, str(tmp_path / name), None) for name, run in runs.items()])[0]
    for (name, run), records in zip(runs.items(), found, strict=True):
        losses, weights = judges[run.precision.state_dtype]
        for record, loss in zip(records, losses, strict=True):
            assert record["loss"] == pytest.approx(loss, rel=LOSS_TOLERANCE), name
        exported = export_weights(tmp_path / name / "export")
        same = sum(int((exported[key] == weight).sum()) for key, weight in weights.items())
        assert same / sum(weight.numel() for weight in weights.values()) > SAME, name
        for key, weight in weights.items():
            assert torch.equal(exported[key], exported[key].bfloat16().float()), (name, key)
            distance = (exported[key] - weight).abs()
            # Small weights move by several of their own digits per step.
            assert (distance <= 2 * ULP * weight.abs() + 1e-5 + 4e-4).all(), (name, key)


FP32 = Precision(dtype="bf16")
EIGHT_BIT: dict[str, tuple[dict[str, Any], Precision]] = {
    "zero0": ({"zero_stage": 0}, Precision(dtype="fp32", state_dtype="8bit")),
    "zero1": ({"zero_stage": 1}, EIGHT),
    "zero3": (ZERO3, EIGHT_BF16),
    "pipeline": ({"zero_stage": 1, "pipeline": 2}, EIGHT),
}

NEAR = 2e-4
"""Relative: what five steps with states rounded to 8 bits may move a loss that falls by 2e-2 of itself meanwhile."""


def test_five_steps_with_8bit_states(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Near fp32 states on every kind of slice that DeepSpeed hands an optimizer, odd lengths included."""
    runs = {name: run_of(tiny_llama_dir, chat_file, *case) for name, case in EIGHT_BIT.items()}
    losses, _ = run_distributed(plain, 1, next(iter(runs.values())), torch.float32)[0]
    found = run_distributed(run_recipe, 2, [(run, str(tmp_path / name), None) for name, run in runs.items()])[0]
    for name, records in zip(runs, found, strict=True):
        for record, loss in zip(records, losses, strict=True):
            assert record["loss"] == pytest.approx(loss, rel=NEAR), name
    # A kill loses nothing: the steps after a resume are those of the run that went on.
    for name in ("zero1", "zero3"):
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000005")
    again = [(runs[name], str(tmp_path / name), "auto") for name in ("zero1", "zero3")]
    for name, records in zip(("zero1", "zero3"), run_distributed(run_recipe, 2, again)[0], strict=True):
        straight = found[list(runs).index(name)]
        assert [record["loss"] for record in records] == [record["loss"] for record in straight], name


FORMATS: dict[str, tuple[int, dict[str, Any], Precision]] = {
    "fp32_zero2": (2, {"zero_stage": 2}, FP32),
    "fp32_one_rank": (1, {"zero_stage": 0}, FP32),
    "bf16_pipeline": (2, {"zero_stage": 1, "pipeline": 2}, SUMS),
    "8bit_zero3": (2, ZERO3, EIGHT),
    "8bit_bf16_zero2": (2, {"zero_stage": 2}, EIGHT_BF16),
    "mixed_offload": (2, {"zero_stage": 1, "offload_optimizer": "cpu"}, FP32_STATES),
}
"""Name -> ranks, parallel section, formats."""

KEPT = {"fp32": 0.0, "bf16": 2.0**-8, "8bit": 0.0}
"""Largest relative error of being rounded twice: when it is read, and after a step that hardly changes it."""

OF_LARGEST = {"fp32": 0.0, "bf16": 0.0, "8bit": 0.02}
"""The same relative to the largest number of the parameter."""

STILL = Optimizer(learning_rate=1e-30, betas=(0.99999, 0.9999999), max_grad_norm=0.3)
"""A step with it leaves the weights as they are, and of each moment all but a thousandth of what gradients there are."""

PAIRS = (
    "fp32_zero2 8bit_zero3", "fp32_zero2 mixed_offload", "bf16_pipeline fp32_one_rank", "8bit_zero3 8bit_bf16_zero2",
)  # fmt: skip
"""Whose checkpoint, and who goes on with it."""


def states_of(run: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    """(parameter, state) -> the numbers in a checkpoint."""
    from toolkit.checkpoint.manifest import folder_name
    from toolkit.checkpoint.reader import CheckpointReader

    reader = CheckpointReader(run / "checkpoints" / folder_name(step))
    found = {}
    for name, shape in reader.manifest.shapes.items():
        for state in ("fp32", "exp_avg", "exp_avg_sq"):
            values = reader.read(name, state, 0, math.prod(shape))
            assert values is not None, (name, state)
            found[name, state] = values
        assert reader.scalars(name) == {"step": step}
    return found


def test_checkpoints_of_any_format_continue_each_other(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Weights, moments and the step come over to another format and topology, rounded to what the new run keeps."""

    def of(name: str, **changes: Any) -> Recipe:
        checkpoint = Checkpoint(export=False, keep=9, every_steps=1)
        constant = Schedule(type="constant")
        return run_of(
            tiny_llama_dir, chat_file, *FORMATS[name][1:], checkpoint=checkpoint, schedule=constant, **changes
        )

    pairs = [tuple(pair.split()) for pair in PAIRS]
    first = [(of(old, steps=1), str(tmp_path / old), None) for old in dict.fromkeys(old for old, _ in pairs)]
    run_distributed(run_recipe, 2, first)
    for ranks in (2, 1):
        again = []
        for old, new in pairs:
            if FORMATS[new][0] == ranks:
                source = tmp_path / old / "checkpoints" / "step-00000001"
                host = "deepspeed" if "offload" in new else "auto"
                resumed = of(new, steps=2, optimizer=STILL.model_copy(update={"implementation": host}))
                again.append((resumed, str(tmp_path / f"{old}-{new}"), str(source)))
        run_distributed(run_recipe, ranks, again)
    for old, new in pairs:
        before, after = states_of(tmp_path / old, 1), states_of(tmp_path / f"{old}-{new}", 2)
        precision = FORMATS[new][2]
        for (name, state), values in after.items():
            wanted = before[name, state]
            if state == "fp32":
                assert torch.equal(values, wanted.bfloat16().float() if precision.master_dtype == "bf16" else wanted)
                continue
            kept = precision.state_dtype
            bound = KEPT[kept] * wanted.abs() + (OF_LARGEST[kept] + 2e-3) * wanted.abs().max()
            assert ((values - wanted).abs() <= bound).all(), (old, new, name, state)
