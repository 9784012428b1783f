"""Speech on every strategy: transformers' losses and gradients, its own texts from the export, exact resume with SpecAugment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq

from tests import speech
from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, precision, recipe
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import evaluations, predictions, read_metrics, run_recipe
from tests.processor import require_number_format
from toolkit.parity import reference
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, LoRA, Recipe, SpeechCTC, SpeechSeq2Seq

STEPS, HALF, HELD_OUT = 4, 2, 5
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""
CHOSEN = {
    "zero0-1": Strategy(1, STRATEGIES["zero0"].fields),
    **{f"{name}-2": STRATEGIES[name] for name in ("zero1", "zero2", "zero3", "zero3_offload_param", "tp2")},
}
ONCE = ("zero1-2", "zero3_offload_param-2")
"""Strategies that one kind of a model is enough for: they differ from another in what DeepSpeed keeps where."""
HIDING: dict[str, Any] = {"mask_time_prob": 0.3, "mask_time_length": 3}
BANDS = {"mask_feature_prob": 0.2, "mask_feature_length": 2}
SHORT = {"scores": ("wer", "cer", "exact_match"), "normalizer": "none"}
TASKS: dict[str, Any] = {
    "whisper": SpeechSeq2Seq(max_duration_s=1.0, target_length=20, max_new_tokens=8, **SHORT, **HIDING, **BANDS),
    "multilingual": SpeechSeq2Seq(
        language="german",
        freeze_encoder=True,
        max_duration_s=1.0,
        target_length=20,
        max_new_tokens=8,
        label_smoothing=0.1,
        **SHORT,
    ),
    "group": SpeechCTC(freeze_feature_encoder=False, **SHORT, **HIDING),
    "layer": SpeechCTC(freeze_feature_encoder=True, **SHORT, **HIDING),
}


def model_of(kind: str, folder: Path) -> Path:
    if kind in ("whisper", "multilingual"):
        return speech.whisper(folder, multilingual=kind == "multilingual")
    return speech.wav2vec2(folder, "hubert" if kind == "layer" else "wav2vec2", norm=kind)


def problem(kind: str, folder: Path, strategy: str, accumulation: int = 2, **changes: Any) -> Recipe:
    model, rows = folder / "model", folder / "data" / "rows.jsonl"
    if not rows.exists():
        model_of(kind, model)
        speech.recordings(folder / "data", 21)
    chosen = CHOSEN[strategy]
    export = {"export": True, "export_dtype": "fp32"} if strategy == "zero2-2" else {"export": False}
    group = {"group_by_length": True} if kind in ("group", "layer") else {}
    sections: dict[str, Any] = {
        "task": TASKS[kind],
        "data": Data(
            train=str(rows),
            packing=False,
            overlong="drop",
            prefetch=2,
            workers=2,
            evaluation_examples=HELD_OUT,
            **group,
        ),
        "batch": Batch(global_size=GLOBAL_SIZE, micro_size=micro_size(chosen, chosen.world_size, accumulation)),
        "evaluation": Evaluation(every_steps=HALF),
        "optimizer": OPTIMIZER,
        "parallel": chosen.parallel,
        "checkpoint": Checkpoint(every_steps=HALF, **export),
        "steps": STEPS,
    }
    return recipe(TASKS[kind].name, model, rows, **sections | changes)


@dataclass(frozen=True)
class SpeechJudge:
    """transformers' own model and loss; of CTC each recording alone, without padding, with the frames given that are hidden."""

    options: Any

    def begin(self, model: nn.Module, micro_batches: Any) -> None:
        """Nothing to look at."""

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.options.name == "speech_seq2seq":
            outputs = model(input_features=batch["input_features"], labels=batch["labels"])
            return nn.functional.cross_entropy(
                outputs.logits.double().flatten(0, 1),
                batch["labels"].flatten(),
                reduction="sum",
                label_smoothing=self.options.label_smoothing,
            )
        total = torch.zeros((), dtype=torch.float64)
        for values, length, labels, times in zip(
            batch["input_values"], batch["lengths"], batch["labels"], batch["masked_frames"], strict=True
        ):
            values = values[None, : int(length)]
            count = int(model._get_feat_extract_output_lengths(length))
            logits = model(values, mask_time_indices=times[None, :count]).logits if accepts_masks(model) else None
            if logits is None:
                logits = model.lm_head(
                    model.dropout(model.base_model(values, mask_time_indices=times[None, :count])[0])
                )
            wanted = labels[labels >= 0]
            total = total + nn.functional.ctc_loss(
                logits[0].double().log_softmax(-1),
                wanted,
                torch.tensor(count),
                torch.tensor(len(wanted)),
                reduction="sum",
            )
        return total

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        return int((batch["labels"] >= 0).sum())


def accepts_masks(model: nn.Module) -> bool:
    """Whether the model hands the frames to hide on to its base."""
    return type(model).__name__.startswith("Wav2Vec2")


def judged(rank: int, world_size: int, run: Recipe) -> reference.Curve:
    """The curve of plain PyTorch."""
    from toolkit.recipe.schedules import factor
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    inputs = prepare_inputs(run, 0, 1, Display(is_main=False))
    steps = [batch.micro_batches for batch in inputs.batches.iterate(0, STEPS)]
    kind = AutoModelForCTC if run.task.name == "speech_ctc" else AutoModelForSpeechSeq2Seq
    model = kind.from_pretrained(str(run.model.path), config=inputs.model_config, dtype=torch.float32)
    if kind is AutoModelForSpeechSeq2Seq:
        model.model.encoder.embed_positions.requires_grad_(False)  # the class says so; from_pretrained forgets it
        if run.task.freeze_encoder:
            model.freeze_encoder()
    if getattr(run.task, "freeze_feature_encoder", False):
        model.freeze_feature_encoder()
    return reference.train(
        model,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: run.optimizer.learning_rate * factor(run.schedule, step, STEPS),
        dtype="fp32",
        max_grad_norm=run.optimizer.max_grad_norm,
        weight_decay=run.optimizer.weight_decay,
        judge=lambda _: SpeechJudge(run.task),
    )


@pytest.mark.parametrize("kind", TASKS)
def test_one_curve_and_one_figure_on_every_strategy(kind: str, tmp_path: Path) -> None:
    """Losses, norms, evaluations and texts, whatever the ranks and the accumulation; exact resume in mid-epoch; the export."""
    chosen = CHOSEN if kind in ("whisper", "group") else [name for name in CHOSEN if name not in ONCE]
    runs = {strategy: problem(kind, tmp_path, strategy) for strategy in chosen}
    wanted = run_distributed(judged, 1, runs["zero0-1"])[0]
    more = {"zero0-4": problem(kind, tmp_path, "zero0-1", 4)}  # other micro-batches, of other padding
    for size, group in ((1, {"zero0-1": runs["zero0-1"], **more}), (2, runs)):
        some = [
            (run, str(tmp_path / name), None)
            for name, run in group.items()
            if name in more or CHOSEN[name].world_size == size
        ]
        run_distributed(run_recipe, size, some, timeout_s=300)
    one = evaluations(tmp_path / "zero0-1")
    for name in (*runs, *more):
        records = read_metrics(tmp_path / name)
        assert deviation([record["loss"] for record in records], wanted.losses) < LOSSES, name
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < NORMS, name
        assert evaluations(tmp_path / name).keys() == {0, HALF, STEPS}
        for step, metrics in evaluations(tmp_path / name).items():
            assert metrics == pytest.approx(one[step], rel=1e-5), (name, step)
            assert predictions(tmp_path / name, step) == predictions(tmp_path / "zero0-1", step)
    again = rewind(tmp_path / "zero2-2", tmp_path / "again", HALF)
    run_distributed(run_recipe, 2, [(runs["zero2-2"], str(again), "auto")])
    assert numbers(read_metrics(again)) == numbers(read_metrics(tmp_path / "zero2-2"))
    check_export(tmp_path / "zero2-2", tmp_path / "data")


def check_export(run: Path, data: Path) -> None:
    """transformers' pipeline, given the folder alone, writes the predictions of the run's end."""
    from transformers import pipeline

    records = predictions(run, STEPS)
    heard = pipeline("automatic-speech-recognition", model=str(run / "export"))
    assert len(records) == HELD_OUT
    # Of its own it would search with five beams.
    options = {"generate_kwargs": {"max_new_tokens": 8, "num_beams": 1}} if heard.type == "seq2seq_whisper" else {}
    for record in records:
        samples, rate = soundfile.read(record["audio"], dtype="float32")
        assert Path(record["audio"]).is_relative_to(data)
        assert heard({"raw": samples, "sampling_rate": rate}, **options)["text"].strip() == record["prediction"]


@pytest.mark.parametrize("kind", ["whisper", "group"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bits_and_adapters(kind: str, dtype: str, tmp_path: Path) -> None:
    """Near fp32 in 16 bits; adapters on every projection of attention leave the base as it was."""
    require_number_format(dtype)
    targets = ("q_proj", "k_proj", "v_proj", "out_proj")
    run = problem(kind, tmp_path, "zero2-2", precision=precision(dtype), tuning=LoRA(rank=2, target_modules=targets))
    plain = problem(kind, tmp_path, "zero2-2", tuning=LoRA(rank=2, target_modules=targets))
    found, wanted = run_distributed(
        run_recipe, 2, [(run, str(tmp_path / dtype), None), (plain, str(tmp_path / "fp32"), None)], timeout_s=300
    )[0]
    losses = [[record["loss"] for record in records] for records in (found, wanted)]
    assert deviation(*losses) < 0.05 and losses[0] != losses[1]
    assert (tmp_path / dtype / "export" / "adapter_model.safetensors").is_file()
    card = json.loads((tmp_path / dtype / "export" / "adapter_config.json").read_text())
    assert {*card["target_modules"]} <= {*targets, *(f"attention.{name}" for name in targets)}
    assert np.isfinite(losses[0]).all()
