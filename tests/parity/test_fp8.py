"""fp8 layers, emulated, under DeepSpeed: the same as plain PyTorch with the same layers."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import export_weights, global_batches, run_recipe
from toolkit.errors import ModelError
from toolkit.parity.reference import Curve
from toolkit.parity.reference import train as train_reference
from toolkit.recipe import Checkpoint, Model, Optimizer, Parallel, Precision, Recipe
from toolkit.recipe.schedules import factor

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'toolkit[torchao]'")

STEPS = 5
CASES: dict[str, dict[str, Any]] = {
    "zero3": {"zero_stage": 3, "param_persistence_threshold": 100},
    "tensor": {"zero_stage": 2, "tensor": 2},
}

EXACT = 1e-7
"""Relative, of the first two losses (the first step has no learning rate): no weight has moved yet."""

TOLERANCE = 1e-4
"""Of the later ones: a gradient near a tie of bf16 may be rounded to the other side."""


def on_fp8(rank: int, world_size: int, runs: list[tuple[Recipe, str, str | None]]) -> list[list[dict[str, Any]]]:
    """`run_recipe` as on a device that multiplies in fp8, with small layers taken for large ones."""
    from toolkit.engine import device
    from toolkit.models import fp8

    fp8.is_faster, device.multiplies_fp8 = lambda *_: True, lambda: True
    return run_recipe(rank, world_size, runs)


def plain(run: Recipe, dtype: str) -> Curve:
    """The judge, with torchao's layers for the stack's own where `dtype` is fp8."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from transformers import AutoModelForCausalLM

    _, steps = global_batches(run, STEPS)
    model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
    if dtype == "fp8":
        convert_to_float8_training(
            model.model.layers, config=replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=True)
        )
    return train_reference(
        model,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: run.optimizer.learning_rate * factor(run.schedule, step, STEPS),
        dtype="bf16",
        max_grad_norm=run.optimizer.max_grad_norm,
        weight_decay=run.optimizer.weight_decay,
    )


def judges(rank: int, world_size: int, run: Recipe) -> list[Curve]:
    """`plain` in fp8 and in bf16."""
    return [plain(run, dtype) for dtype in ("fp8", "bf16")]


def test_five_steps_equal_plain_torch(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Losses, and the names of weights; what fp8 itself changes is far larger than what an exact step may differ."""
    runs = {
        name: recipe(
            "causal_lm",
            tiny_llama_dir,
            chat_file,
            model=Model(path=str(tiny_llama_dir), activation_checkpointing=name == "zero3"),
            precision=Precision(dtype="fp8"),
            parallel=Parallel(**case),
            optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.3, implementation="torch"),
            checkpoint=Checkpoint(export=True, export_dtype="fp32"),
            steps=STEPS,
        )
        for name, case in CASES.items()
    }
    judge, bf16 = run_distributed(judges, 1, runs["zero3"])[0]
    found = run_distributed(on_fp8, 2, [(run, str(tmp_path / name), None) for name, run in runs.items()])[0]
    for name, records in zip(runs, found, strict=True):
        for step, (record, loss) in enumerate(zip(records, judge.losses, strict=True)):
            # A tensor-parallel rank scales a row of its part of a matrix by the part's own largest number.
            is_exact = step < 2 and name != "tensor"
            assert record["loss"] == pytest.approx(loss, rel=EXACT if is_exact else TOLERANCE), (name, step)
        exported = export_weights(tmp_path / name / "export")
        assert exported.keys() == judge.weights.keys()
        assert all(exported[key].shape == weight.shape for key, weight in judge.weights.items()), name
    # Of both steps that are compared exactly: on one batch, what fp8 adds and takes away can cancel out.
    assert max(abs(judge.losses[step] / bf16.losses[step] - 1) for step in (0, 1)) > 50 * EXACT


class Router(nn.Linear):
    """A layer whose forward pass is its own."""


def model_of(**layers: nn.Module) -> nn.Module:
    model = nn.Module()
    model.model = nn.ModuleDict(layers)
    model.base_model_prefix = "model"
    model.base_model = model.model
    model.lm_head = nn.Linear(4096, 4096, bias=False, device="meta")
    return model


def test_layers_are_chosen_by_shape() -> None:
    """Heads, layers of another class, uneven and small ones stay; parameters are the same objects under the same names."""
    from torchao.float8.float8_linear import Float8Linear

    from toolkit.models.fp8 import use_fp8

    sizes = {"large": (4096, 4096), "wide": (2048, 8192), "small": (2048, 4096), "uneven": (4096, 4104)}
    layers = {name: nn.Linear(*size, device="meta") for name, size in sizes.items()}
    model = model_of(**layers, router=Router(4096, 4096, device="meta"))
    before = dict(model.named_parameters())
    found = use_fp8(model, emulate=True)
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    chosen = [name for name, module in model.named_modules() if isinstance(module, Float8Linear)]
    assert chosen == ["model.large", "model.wide"]
    assert astuple(found) == (2, 2, 1, 1)
    assert found.describe() == (
        "fp8: 2 linear layers multiply in fp8; in bf16 stay 2 outside the base model or of another class, "
        "1 with a side that is no multiple of 16, 1 too small to win"
    )


def test_ranks_that_share_a_layer_make_it_small() -> None:
    from toolkit.models.fp8 import use_fp8

    with pytest.raises(
        ModelError, match="none of the 2 linear layers of Module is one that fp8 makes faster"
    ) as caught:
        use_fp8(model_of(large=nn.Linear(4096, 4096, device="meta")), emulate=True, tensor=2)
    assert "on each of 2 tensor-parallel ranks" in caught.value.expected
