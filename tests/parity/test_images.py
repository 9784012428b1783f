"""Image classification: one curve whatever the strategy, equal to plain PyTorch; running statistics, averages of the weights and
augmentation go on exactly, on other topologies too; an export that transformers' own pipeline reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from tests import images
from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER, SCHEDULE
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import evaluations, export_weights, global_batches, read_metrics, run_recipe
from tests.processor import require_number_format
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.models.random_weights import RandomWeights
from toolkit.parity import reference
from toolkit.parity.reference import Batch, Curve
from toolkit.parity.report import deviation
from toolkit.recipe import Batch as Sizes
from toolkit.recipe import (
    Checkpoint,
    Data,
    Evaluation,
    ImageClassification,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Tracking,
)
from toolkit.recipe.schedules import factor

STEPS, HALF, GLOBAL, MICRO = 4, 2, 8, 2
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""
DECAY = 0.9
EVERYTHING = ImageClassification(
    crop_scale=(0.4, 1.0), color_jitter=0.3, rand_augment=9, random_erasing=0.5, mixup_alpha=0.4, cutmix_alpha=1.0,
    label_smoothing=0.1,
)  # fmt: skip
RATES = OPTIMIZER.model_copy(update={"ema_decay": DECAY})


def problem(folder: Path, path: Path, stage: int = 1, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": Model(path=str(path)),
        "data": Data(train=str(folder / "data"), evaluation=str(folder / "data"), packing=False, prefetch=2, workers=2),
        "task": EVERYTHING,
        "batch": Sizes(global_size=GLOBAL, micro_size=MICRO),
        "optimizer": RATES,
        "schedule": SCHEDULE,
        "precision": Precision(dtype="fp32"),
        "parallel": Parallel(zero_stage=stage),  # type: ignore[arg-type]
        "checkpoint": Checkpoint(every_steps=HALF, export_dtype="fp32"),
        "evaluation": Evaluation(every_steps=HALF),
        "tracking": Tracking(tensorboard=False),
        "steps": STEPS,
    }
    return Recipe(**{**values, **changes})


class Judge:
    """Plain cross-entropy of mixed images, in fp64."""

    def __init__(self, smoothing: float, _: nn.Module) -> None:
        self.smoothing = smoothing

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Nothing to look at."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = model(pixel_values=batch["pixel_values"]).logits.double()
        chances = logits.log_softmax(-1)
        wanted = nn.functional.one_hot(batch["labels"], logits.shape[-1]).double()
        if "share" in batch:
            other = nn.functional.one_hot(batch["other_labels"], logits.shape[-1]).double()
            share = batch["share"].double().unsqueeze(1)
            wanted = share * wanted + (1 - share) * other
        wanted = (1 - self.smoothing) * wanted + self.smoothing / logits.shape[-1]
        return -(wanted * chances).sum()

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])


def judged(
    rank: int, world_size: int, recipe: Recipe
) -> tuple[Curve, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The curve of plain PyTorch, the running statistics it should end with, and the averages of weights and statistics."""
    inputs, steps = global_batches(recipe, STEPS)
    kind = inputs.task.auto_class
    model = kind.from_pretrained(
        recipe.model.path, config=inputs.model_config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    drawn = RandomWeights(kind, inputs.model_config, recipe.seed)
    heads = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    with torch.no_grad():
        for name in heads:
            model.get_parameter(name).copy_(drawn.parameter(name))
    seen: dict[str, list[torch.Tensor]] = {}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    running = {
        f"{name}.{leaf}": getattr(module, leaf).clone()
        for name, module in norms.items()
        for leaf in ("running_mean", "running_var")
    }

    def look(name: str, module: nn.Module, given: tuple[torch.Tensor]) -> None:
        values = given[0].detach().double().transpose(0, 1).flatten(1)
        seen.setdefault(f"{name}.running_mean", []).append(values.mean(1))
        seen.setdefault(f"{name}.running_var", []).append(values.var(1))

    for name, module in norms.items():
        module.register_forward_pre_hook(partial(look, name))
    averages = {name: value.detach().clone() for name, value in model.named_parameters()} | {
        name: value.clone() for name, value in running.items()
    }
    masters: dict[str, torch.Tensor] = {}

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW; what follows a step: running statistics move once, then averages are taken."""
        named = dict(model.named_parameters())
        names = {id(value): name for name, value in named.items()}
        own = reference.parameter_groups(model, {name: named[name] for name in named}, recipe.optimizer.weight_decay)
        for mine, theirs in zip(own, groups, strict=True):
            masters.update(
                {names[id(value)]: master for value, master in zip(mine["params"], theirs["params"], strict=True)}
            )
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        optimizer.register_step_post_hook(after)
        return optimizer

    def after(*_: Any) -> None:
        for name, values in seen.items():
            share = norms[name.rpartition(".")[0]].momentum
            running[name] = (1 - share) * running[name] + share * torch.stack(values).mean(0).float()
        seen.clear()
        taken = len(updates)
        decay = min(DECAY, (1 + taken) / (10 + taken))
        updates.append(decay)
        for name, value in {**masters, **running}.items():
            averages[name] = decay * averages[name] + (1 - decay) * value.detach()

    def rate(index: int) -> float:
        return recipe.optimizer.learning_rate * factor(recipe.schedule, index, STEPS)

    updates: list[float] = []
    curve = reference.train(
        model,
        steps,
        build,
        rate,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        weight_decay=recipe.optimizer.weight_decay,
        judge=partial(Judge, recipe.task.label_smoothing),  # type: ignore[attr-defined]
    )
    return curve, running, averages


@pytest.mark.parametrize("kind", images.CONFIGS)
def test_one_curve_on_every_topology(kind: str, tmp_path: Path) -> None:
    images.folder(tmp_path / "data")
    model = images.checkpoint(kind, tmp_path / "model")
    stages = {"one": (0, 1), "zero1": (1, 2), "zero2": (2, 2), "zero3": (3, 2)}
    runs = {name: problem(tmp_path, model, stage) for name, (stage, _) in stages.items()}
    if kind == "vit":
        stages["tensor"] = (1, 2)
        runs["tensor"] = problem(tmp_path, model, parallel=Parallel(zero_stage=1, tensor=2))
    for size in (1, 2):
        some = [(runs[name], str(tmp_path / name), None) for name, (_, ranks) in stages.items() if ranks == size]
        run_distributed(run_recipe, size, some, timeout_s=300)
    curve, running, averages = run_distributed(judged, 1, runs["one"])[0]
    assert max(curve.norms) > 1.1 * OPTIMIZER.max_grad_norm, "clipping must bite"
    for name in stages:
        records = read_metrics(tmp_path / name)
        assert deviation([record["loss"] for record in records], curve.losses) < LOSSES, name
        assert deviation([record["grad_norm"] for record in records], curve.norms) < NORMS, name
        found = evaluations(tmp_path / name)
        assert sorted(found) == [0, HALF, STEPS]
        for step, metrics in found.items():
            assert metrics == pytest.approx(evaluations(tmp_path / "one")[step], rel=1e-5, abs=1e-6), (name, step)
        exported = AutoModelForImageClassification.from_pretrained(tmp_path / name / "export").state_dict()
        for key, values in averages.items():
            noise = curve.shares.get(key, 1.0) < reference.ROUNDING
            torch.testing.assert_close(exported[key], values, rtol=2e-5, atol=2e-3 if noise else 2e-6)
    assert bool(running) == (kind in ("resnet", "efficientnet"))

    # What the export says of the held-out images is what the evaluation said.
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(tmp_path / "one" / "export"), top_k=1)
    files = sorted((tmp_path / "data" / "test").glob("*/*.png"))
    said = [classify(str(file))[0]["label"] for file in files]
    lines = (tmp_path / "one" / "predictions" / f"step-{STEPS:08d}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["prediction"] for record in records] == said
    assert [record["reference"] for record in records] == [file.parent.name for file in files]
    matrix = images.details(tmp_path / "one", STEPS)["confusion_matrix"]
    right = sum(matrix["counts"][index][index] for index in range(3))
    assert right / len(files) == pytest.approx(evaluations(tmp_path / "one")[STEPS]["accuracy"])
    assert matrix["classes"] == sorted(images.CLASSES) and np.sum(matrix["counts"]) == len(files)


def test_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """On the same topology bit for bit, on another within rounding: order, augmentation, statistics and averages."""
    images.folder(tmp_path / "data")
    model = images.checkpoint("resnet", tmp_path / "model")
    two, three = problem(tmp_path, model, 2), problem(tmp_path, model, 3)
    run_distributed(run_recipe, 2, [(two, str(tmp_path / "whole"), None)])
    same = rewind(tmp_path / "whole", tmp_path / "same", HALF)
    other = rewind(tmp_path / "whole", tmp_path / "other", HALF)
    run_distributed(run_recipe, 2, [(two, str(same), "auto")])
    run_distributed(run_recipe, 1, [(three, str(other), "auto")])
    whole = tmp_path / "whole"
    assert numbers(read_metrics(same)) == numbers(read_metrics(whole))
    assert evaluations(same) == evaluations(whole)
    wanted = export_weights(whole / "export")
    for name, values in export_weights(same / "export").items():
        assert torch.equal(values, wanted[name]), name
    losses = [[record["loss"] for record in read_metrics(place)] for place in (other, whole)]
    assert deviation(*losses) < LOSSES
    for name, values in export_weights(other / "export").items():
        torch.testing.assert_close(values, wanted[name], rtol=1e-5, atol=1e-6)


def test_statistics_are_frozen_from_the_resumed_step_on(tmp_path: Path) -> None:
    images.folder(tmp_path / "data")
    path = images.checkpoint("resnet", tmp_path / "model")
    plain = problem(tmp_path, path, 2, optimizer=OPTIMIZER)
    whole = tmp_path / "whole"
    run_distributed(run_recipe, 1, [(plain, str(whole), None)])
    held = problem(tmp_path, path, 2, optimizer=OPTIMIZER, model=Model(path=str(path), batch_norm="frozen"))
    resumed = rewind(whole, tmp_path / "resumed", HALF)
    run_distributed(run_recipe, 1, [(held, str(resumed), "auto")])
    at_half = CheckpointReader(whole / "checkpoints" / f"step-{HALF:08d}")
    found, moved = export_weights(resumed / "export"), export_weights(whole / "export")
    statistics = [name for name in found if "running" in name]
    assert statistics and all(torch.equal(found[name], at_half.weight(name)) for name in statistics)
    assert not any(torch.equal(moved[name], at_half.weight(name)) for name in statistics)


def test_synchronised_statistics_are_those_of_all_ranks(tmp_path: Path) -> None:
    """Two ranks of 2 images and one of 4 normalise the same 4 images together."""
    images.folder(tmp_path / "data")
    path = images.checkpoint("resnet", tmp_path / "model")
    model = Model(path=str(path), batch_norm="synchronised")
    one = problem(tmp_path, path, 1, model=model, batch=Sizes(global_size=GLOBAL, micro_size=4))
    two = {stage: problem(tmp_path, path, stage, model=model) for stage in (2, 3)}
    run_distributed(run_recipe, 1, [(one, str(tmp_path / "one"), None)])
    run_distributed(run_recipe, 2, [(run, str(tmp_path / str(stage)), None) for stage, run in two.items()])
    alone = read_metrics(tmp_path / "one")
    apart = problem(tmp_path, path, 1)
    run_distributed(run_recipe, 2, [(apart, str(tmp_path / "apart"), None)])
    for stage in two:
        for key in ("loss", "grad_norm"):
            found = [[record[key] for record in records] for records in (read_metrics(tmp_path / str(stage)), alone)]
            assert deviation(*found) < NORMS, (stage, key)
        for step, metrics in evaluations(tmp_path / str(stage)).items():
            assert metrics == pytest.approx(evaluations(tmp_path / "one")[step], rel=1e-5, abs=1e-6)
    first = [read_metrics(tmp_path / name)[0]["loss"] for name in ("one", "apart")]
    assert abs(first[0] - first[1]) > 1e-4, "statistics of 2 images are others than those of 4"


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    images.folder(tmp_path / "data")
    path = images.checkpoint("resnet", tmp_path / "model")
    run = problem(tmp_path, path, 2, model=Model(path=str(path), batch_norm="frozen"), optimizer=OPTIMIZER)
    run_distributed(run_recipe, 2, [(run, str(tmp_path / "run"), None)])
    before, after = export_weights(path), export_weights(tmp_path / "run" / "export")
    statistics = [name for name in before if "running" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(
        before["resnet.embedder.embedder.convolution.weight"], after["resnet.embedder.embedder.convolution.weight"]
    )


FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": Precision(dtype="bf16")},
    "fp16": {"precision": Precision(dtype="fp16", initial_scale_power=8)},
    "zero3-bf16": {"precision": Precision(dtype="bf16"), "parallel": Parallel(zero_stage=3)},
    "offload": {"parallel": Parallel(zero_stage=2, offload_optimizer="cpu")},
}


@pytest.mark.parametrize("name", FORMATS)
def test_number_formats_and_offload(name: str, tmp_path: Path) -> None:
    """Statistics are kept in fp32 beside 16-bit weights, and the curve is that of fp32 up to the format."""
    if "precision" in FORMATS[name]:
        require_number_format(FORMATS[name]["precision"].dtype)
    images.folder(tmp_path / "data")
    path = images.checkpoint("resnet", tmp_path / "model")
    runs = {"fp32": problem(tmp_path, path, 2), name: problem(tmp_path, path, **FORMATS[name])}
    run_distributed(run_recipe, 2, [(run, str(tmp_path / key), None) for key, run in runs.items()], timeout_s=300)
    losses = [[record["loss"] for record in read_metrics(tmp_path / key)] for key in runs]
    assert deviation(*losses) < (1e-6 if name == "offload" else 2e-2)
    plain, found = (export_weights(tmp_path / key / "export") for key in runs)
    for key in (key for key in plain if "running" in key):
        assert found[key].dtype == torch.float32
        assert not torch.equal(found[key], found[key].bfloat16().float()), "kept in 16 bits"
        torch.testing.assert_close(found[key], plain[key], rtol=2e-2, atol=2e-2)


def test_optimizers_keep_averages(tmp_path: Path) -> None:
    """An average is kept beside any optimizer, and is not the last weights."""
    images.folder(tmp_path / "data")
    path = images.checkpoint("vit", tmp_path / "model")
    rates = Optimizer(type="sgd_momentum", learning_rate=0.05, ema_decay=0.99)
    runs = {
        name: problem(tmp_path, path, 2, optimizer=rates.model_copy(update={"ema_decay": decay}))
        for name, decay in (("kept", 0.99), ("none", 0.0))
    }
    run_distributed(run_recipe, 2, [(run, str(tmp_path / name), None) for name, run in runs.items()])
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in runs]
    assert losses[0] == losses[1]
    kept, last = (export_weights(tmp_path / name / "export") for name in ("kept", "none"))
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    assert "an exponential moving average" in (tmp_path / "kept" / "export" / "README.md").read_text()
