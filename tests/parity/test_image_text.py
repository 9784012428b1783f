"""Vision-language tuning on every ZeRO stage: plain PyTorch's losses and gradients, whoever has the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import vision
from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, precision, recipe
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import evaluations, export_weights, predictions, read_metrics, reference_curve, run_recipe
from tests.processor import require_number_format
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, ImageTextToText, LoRA, Recipe
from toolkit.train.inputs import load_task

STEPS, HALF = 4, 2
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""
CLIPPED = 0.05
HELD_OUT = 7
"""Not a multiple of any micro-batch: fillers are needed."""

CHOSEN = {
    "zero0-1": Strategy(1, STRATEGIES["zero0"].fields),
    **{f"{name}-2": STRATEGIES[name] for name in ("zero1", "zero2", "zero3", "zero3_offload_param", "tp2")},
}
ONCE = ("zero1-2", "zero3_offload_param-2")
"""Strategies that one kind is enough for: they differ from another in what DeepSpeed keeps where."""
KINDS: dict[str, dict[str, Any]] = {
    "llava": {"task": ImageTextToText(freeze_vision_tower=False, scores=("rouge",), max_new_tokens=6)},
    "qwen2_5_vl": {"task": ImageTextToText(scores=("exact_match", "rouge"), max_new_tokens=6, sample_prompt="Hello?")},
    "idefics3": {"task": ImageTextToText(freeze_vision_tower=False, label_smoothing=0.1), "packing": False},
    "adapters": {"task": ImageTextToText(), "tuning": LoRA(rank=4), "model": "qwen2_5_vl"},
}
"""What is trained: everything, all but the tower, everything in rows of one example, adapters in the language model."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.write(tmp_path_factory.mktemp("rows") / "rows.parquet", vision.chats())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: vision.checkpoint(family, folder / family) for family in ("llava", "qwen2_5_vl", "idefics3")}


def problem(kind: str, models: dict[str, Path], file: Path, strategy: str) -> Recipe:
    chosen, fields = CHOSEN[strategy], dict(KINDS[kind])
    size = micro_size(chosen, chosen.world_size, 2)
    packing = fields.pop("packing", True)
    export = {"export": True, "export_dtype": "fp32"} if strategy != "zero0-1" else {"export": False}
    return recipe(
        "image_text_to_text",
        models[fields.pop("model", kind)],
        file,
        data=Data(train=str(file), packing=packing, prefetch=0, evaluation_examples=HELD_OUT, overlong="truncate"),
        batch=Batch(global_size=GLOBAL_SIZE, micro_size=size, sequence_length=160),
        evaluation=Evaluation(every_steps=HALF),
        optimizer=OPTIMIZER.model_copy(update={"max_grad_norm": CLIPPED}),
        parallel=chosen.parallel,
        checkpoint=Checkpoint(every_steps=HALF, **export),
        steps=STEPS,
        **fields,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_curve_on_every_stage(kind: str, models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Every step's loss and gradient norm, every evaluation and prediction, the export's weights; exact resume."""
    chosen = CHOSEN if kind == "llava" else [name for name in CHOSEN if name not in ONCE]
    runs = {strategy: problem(kind, models, data, strategy) for strategy in chosen}
    for size in (1, 2):
        some = [(run, str(tmp_path / name), None) for name, run in runs.items() if CHOSEN[name].world_size == size]
        run_distributed(run_recipe, size, some, timeout_s=300)
    wanted = read_metrics(tmp_path / "zero0-1")
    losses, norms = ([record[name] for record in wanted] for name in ("loss", "grad_norm"))
    if kind in ("llava", "idefics3"):  # the judge trains everything
        curve = run_distributed(reference_curve, 1, runs["zero0-1"])[0]
        assert deviation(losses, curve.losses) < LOSSES
        assert deviation(norms, curve.norms) < NORMS
    assert max(norms) > 1.1 * CLIPPED, "clipping must bite"
    one = evaluations(tmp_path / "zero0-1")
    for strategy in runs:
        records = read_metrics(tmp_path / strategy)
        assert deviation([record["loss"] for record in records], losses) < LOSSES, strategy
        assert deviation([record["grad_norm"] for record in records], norms) < NORMS, strategy
        for step, metrics in evaluations(tmp_path / strategy).items():
            assert metrics == pytest.approx(one[step], rel=1e-5), (strategy, step)
            if runs[strategy].task.scores:
                assert predictions(tmp_path / strategy, step) == predictions(tmp_path / "zero0-1", step)
    again = rewind(tmp_path / "zero2-2", tmp_path / "again", HALF)
    moved = rewind(tmp_path / "zero2-2", tmp_path / "moved", HALF)
    run_distributed(run_recipe, 2, [(runs["zero2-2"], str(again), "auto"), (runs["zero3-2"], str(moved), "auto")])
    assert numbers(read_metrics(again)) == numbers(read_metrics(tmp_path / "zero2-2"))
    assert deviation([record["loss"] for record in read_metrics(moved)], losses) < LOSSES
    check_exports(runs["zero3-2"], tmp_path, models)
    if kind == "llava":
        check_pipeline(runs["zero3-2"], tmp_path / "zero3-2")


def check_exports(run: Recipe, folder: Path, models: dict[str, Path]) -> None:
    """Every stage exports the same, and so does a run that was moved; what is frozen is as it was to the last bit."""
    found = {name: export_weights(folder / name / "export") for name in ("zero2-2", "zero3-2", "tp2-2", "moved")}
    for weights in found.values():
        assert weights.keys() == found["zero2-2"].keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, found["zero2-2"][name], rtol=1e-5, atol=2e-5)
    if run.tuning.name == "lora":
        said = json.loads((folder / "zero3-2" / "export" / "adapter_config.json").read_text())
        assert said["task_type"] == "CAUSAL_LM"
        assert all("language_model" in name for name in found["zero3-2"]), "adapters of the language model alone"
        return
    before = export_weights(Path(str(run.model.path)))
    assert before.keys() == found["zero3-2"].keys()
    left = {name for name, value in before.items() if torch.equal(value, found["zero3-2"][name])}
    if run.task.freeze_vision_tower:
        tower = {name for name in before if "visual." in name and "merger" not in name}
    else:  # LLaVA reads the output of the last layer but one
        tower = {
            name for name in before if "vision_tower" in name and (".layers.1." in name or "post_layernorm" in name)
        }
    assert left == tower


def check_pipeline(run: Recipe, folder: Path) -> None:
    """transformers' own pipeline, on the export alone, says of each conversation what the run has said at its end."""
    from transformers import pipeline

    speak = pipeline("image-text-to-text", model=str(folder / "export"), dtype=torch.float32)
    task = load_task(run)
    written = {record["prompt"] + record["reference"]: record["prediction"] for record in predictions(folder, STEPS)}
    assert len(written) == HELD_OUT and len(set(written.values())) > 1
    seen = 0
    for row in vision.chats():
        messages = vision.shown(row)
        said = task.predict(None, {}, [task.transform(task.encode(row)[0], None, is_trained=False)], silent)  # type: ignore[arg-type]
        prediction = written.get(said[0]["prompt"] + said[0]["reference"])
        if prediction is None:
            continue
        [answer] = speak(text=[messages[:-1]], max_new_tokens=6, return_full_text=False, do_sample=False)
        assert answer[0]["generated_text"].strip() == prediction
        seen += 1
    assert seen == HELD_OUT


def silent(batch: Any, settings: Any) -> list[list[int]]:
    """Generates nothing."""
    return [[] for _ in batch["input_ids"]]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bits(dtype: str, models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Near fp32, tower and language model alike."""
    require_number_format(dtype)
    changes = {"evaluation": Evaluation(), "checkpoint": Checkpoint(export=False)}
    plain = Recipe(**dict(problem("llava", models, data, "zero3-2")) | changes | {"task": ImageTextToText()})
    runs = {"fp32": plain, dtype: plain.model_copy(update={"precision": precision(dtype)})}
    run_distributed(run_recipe, 2, [(run, str(tmp_path / name), None) for name, run in runs.items()], timeout_s=120)
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in runs]
    assert deviation(*losses) < 0.02 and losses[0] != losses[1]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_a_rank_whose_rows_have_no_image(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Under ZeRO-3 every rank calls the vision tower equally often; and nothing is learned of what stands in."""
    rows = [row for row in vision.chats(60) if len(row["images"]) != 2]  # none, one, none, one, ...
    assert [len(row["images"]) for row in rows[:6]] == [0, 1, 0, 1, 0, 1]
    file = vision.write(tmp_path / "rows.parquet", rows)
    runs = {}
    for strategy in ("zero0-1", "zero2-2", "zero3-2"):
        chosen = CHOSEN[strategy]
        runs[strategy] = recipe(
            "image_text_to_text",
            models[family],
            file,
            task=ImageTextToText(freeze_projector=False, scores=("exact_match",), max_new_tokens=3),
            data=Data(
                train=str(file), packing=False, shuffle=False, prefetch=0, evaluation_examples=4, overlong="drop"
            ),
            batch=Batch(global_size=4, micro_size=1 if chosen.world_size == 2 else 4, sequence_length=256),
            parallel=chosen.parallel,
            steps=STEPS,
        )
    run_distributed(run_recipe, 1, [(runs["zero0-1"], str(tmp_path / "one"), None)])
    two = [(runs[name], str(tmp_path / name), None) for name in ("zero2-2", "zero3-2")]
    run_distributed(run_recipe, 2, two, timeout_s=120)
    wanted = read_metrics(tmp_path / "one")
    for _, folder, _ in two:
        for name, most in (("loss", LOSSES), ("grad_norm", NORMS)):
            found = [record[name] for record in read_metrics(folder)]
            assert deviation(found, [record[name] for record in wanted]) < most
