"""Smoke and parity: every lever on a tiny Llama against plain PyTorch on the same device; killed, resumed, exported."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.levers import Lever, lacking
from gpu_stages.setting import Setting, with_fields

STEPS = 6
LEARNING_RATE = 1e-3
VOCABULARY = 512
LENGTH = 128
NARROW, WIDE = (64, 128), (1040, 4112)
"""Width of the model, and of its MLP; fp8 leaves all but wide layers in bf16."""
KILLED, RESUMED = "killed with SIGKILL", "resumed, exported, reloaded"
LONG = 16
"""Steps of the run that is killed."""

TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 3e-3, "tf32": 3e-3, "bf16 states": 2e-2, "fp8": 5e-2}
"""Largest relative deviation of a loss from plain PyTorch's that is rounding, by the coarsest format of the two."""

HOST_ADAM = {"parallel.offload_optimizer": "cpu"}
HOST_KERNEL = {**HOST_ADAM, "optimizer.implementation": "deepspeed"}
BF16 = {"precision.dtype": "bf16"}
BF16_STATES = {**BF16, "precision.master_dtype": "bf16", "precision.state_dtype": "bf16"}

LEVERS = (
    *(Lever(f"ZeRO-{stage}", {"parallel.zero_stage": stage}) for stage in (0, 1, 2)),
    Lever("ZeRO-3", {"parallel.zero_stage": 3, "parallel.param_persistence_threshold": 100}),
    Lever("ZeRO-2, states on the host", {"parallel.zero_stage": 2, **HOST_ADAM}),
    Lever("ZeRO-3, states and parameters on the host", {"parallel.zero_stage": 3, "parallel.offload_param": "cpu", **HOST_ADAM}),
    Lever("activation checkpointing", {"model.activation_checkpointing": True}),
    Lever("layer inputs on the host", {"model.activation_checkpointing": True, "model.activation_offload": True}),
    Lever("tiled MLP", {"model.mlp_tiles": 4}),
    Lever("bf16", BF16, rounding="bf16"),
    Lever("fp16", {"precision.dtype": "fp16", "precision.initial_scale_power": 8}, "cuda", "fp16"),
    Lever("tf32", {"precision.tf32": True}, "cuda", "tf32"),
    Lever("bf16, gradients exchanged in bf16", {**BF16, "precision.communication_dtype": "bf16"}, rounding="bf16"),
    Lever("bf16 masters and states", BF16_STATES, rounding="bf16 states"),
    Lever("bf16 masters, 8-bit states", {**BF16_STATES, "precision.state_dtype": "8bit"}, "torchao", "bf16 states"),
    Lever("8-bit states", {**BF16, "precision.state_dtype": "8bit"}, "torchao", "bf16 states"),
    Lever("attention by document", {**BF16, "model.attention": "varlen"}, rounding="bf16"),
    Lever("fused kernels", {**BF16, "model.kernels": "liger"}, "liger", "bf16"),
    Lever("compiled", {**BF16, "model.compile": True}, "cuda", "bf16"),
    Lever("compiled, checkpointing, ZeRO-3", {**BF16, "model.compile": True, "model.activation_checkpointing": True, "parallel.zero_stage": 3}, "cuda", "bf16"),
    Lever("fp8", {"precision.dtype": "fp8"}, "fp8", "fp8"),
    Lever("fp8, compiled", {"precision.dtype": "fp8", "model.compile": True}, "fp8", "fp8"),
    Lever("DeepSpeed's fused Adam", {"optimizer.implementation": "deepspeed"}, "nvcc"),
    Lever("DeepSpeed's Adam on the host", HOST_KERNEL, "compiler"),
    Lever("ZeRO-3, half of the states on the host", {"parallel.zero_stage": 3, "parallel.offload_ratio": 0.5, **HOST_KERNEL}, "nvcc"),
    Lever("bf16 masters and states, on the host", {**BF16_STATES, **HOST_KERNEL}, "nvcc", "bf16 states"),
)  # fmt: skip
"""The base is ZeRO-2 in fp32 with torch's own fused AdamW."""

FORMATS = {"fp16": "fp16", "bf16": "bf16", "bf16 states": "bf16", "fp8": "bf16"}
"""Rounding -> number format of the plain PyTorch run it is compared with; fp32 for the others."""


def rows(setting: Setting) -> list[Row]:
    """A row per lever, cheapest first; those that build kernels last."""
    measured = [
        Row(lever.name, functools.partial(_compare, setting, lever), lacking(lever, setting.device)) for lever in LEVERS
    ]
    builds = next(index for index, lever in enumerate(LEVERS) if "model.compile" in lever.fields)
    resumed = [
        Row(KILLED, functools.partial(_until_killed, setting), kills_itself=True),
        Row(RESUMED, functools.partial(_resume, setting)),
    ]
    return [*measured[:builds], *resumed, *measured[builds:]]


def part(records: Mapping[str, Record]) -> str:
    """The page's table."""
    lines = []
    for name, record in records.items():
        deviation, limit = record.get("deviation"), record.get("tolerance")
        cells = ["", ""] if deviation is None else [f"{deviation:.1e}", f"{limit:.0e}"]
        lines.append([name, record["status"], *cells, f"{record.get('seconds', 0.0):.1f}"])
    return table(["", "", "deviation of the loss", "tolerance", "s"], lines)


def _compare(setting: Setting, lever: Lever, _: float) -> Record:
    """Train with `lever` and by plain PyTorch. Raises AssertionError where they disagree."""
    width = WIDE if lever.rounding == "fp8" else NARROW
    losses = _losses(_train(setting, _recipe(setting, lever.fields, STEPS, width), setting.place(lever.name)))
    reference, _weights = _reference(setting, FORMATS.get(lever.rounding, "fp32"), STEPS, width)
    shutil.rmtree(setting.place(lever.name))
    return _judged(losses, reference, lever.rounding)


def _judged(losses: list[float], reference: list[float], rounding: str) -> Record:
    assert len(losses) == len(reference), f"{len(losses)} steps instead of {len(reference)}"
    deviation = max(abs(ours - theirs) / theirs for ours, theirs in zip(losses, reference, strict=True))
    limit = TOLERANCES[rounding]
    print(f"losses {losses}\nplain PyTorch {reference}")
    # not >: a NaN is no agreement.
    assert deviation <= limit, f"losses are {deviation:.1e} from plain PyTorch's, more than {limit:.0e}"
    return {"deviation": deviation, "tolerance": limit}


def _recipe(setting: Setting, fields: Mapping[str, Any], steps: int, width: tuple[int, int] = NARROW) -> Any:
    from toolkit import Recipe

    problem = _problem(setting, width)
    sections = {
        "model": {"path": str(problem / "model"), "tokenizer": str(problem / "tokenizer")},
        "data": {"train": str(problem / "rows.jsonl"), "prefetch": 0},
        "batch": {"global_size": 8, "micro_size": 2, "sequence_length": LENGTH},
        "optimizer": {"learning_rate": LEARNING_RATE, "implementation": "torch"},
        "schedule": {"type": "constant"},
        "precision": {"dtype": "fp32"},
        "parallel": {"zero_stage": 2},
        "checkpoint": {"export": False},
        "tracking": {"tensorboard": False},
    }
    return Recipe(**with_fields(sections, fields), steps=steps)


def _problem(setting: Setting, width: tuple[int, int]) -> Path:
    from harness.problem import write_problem

    folder = setting.folder / f"problem {width[0]}"
    if not (folder / "model").is_dir():
        write_problem(
            folder,
            rows=400,
            longest=LENGTH // 2,
            split=False,
            vocab_size=VOCABULARY,
            hidden_size=width[0],
            intermediate_size=width[1],
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
        )
    return folder


def _train(setting: Setting, recipe: Any, folder: Path, *, resume: str | None = None) -> list[Record]:
    """A whole run of the toolkit in this process; its records of steps."""
    from toolkit.engine import process
    from toolkit.train.run import RunOptions, train

    process.start(process.from_environment())
    code = train(recipe, RunOptions("smoke", folder, resume), keep_group=True)
    assert code == 0, f"the run ended with exit code {code}"
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def _losses(records: list[Record]) -> list[float]:
    return [record["loss"] for record in records]


@functools.cache
def _reference(
    setting: Setting, dtype: str, steps: int, width: tuple[int, int] = NARROW
) -> tuple[list[float], dict[str, Any]]:
    """Losses and final weights of plain PyTorch in `dtype` on the same device: no DeepSpeed, nothing of our engine."""
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.parity import reference
    from toolkit.parity.optimizers import build_optimizer
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    recipe = _recipe(setting, {}, steps, width)
    inputs = prepare_inputs(recipe, 0, 1, Display(is_main=False))
    model = AutoModelForCausalLM.from_pretrained(_problem(setting, width) / "model", dtype=torch.float32).to(
        setting.device
    )
    names = ("input_ids", "position_ids", "targets")
    batches = [
        [{name: batch[name].to(setting.device) for name in names} for batch in step.micro_batches]
        for step in inputs.batches.iterate(0, steps)
    ]
    curve = reference.train(
        model,
        batches,
        lambda groups: build_optimizer(recipe.optimizer, groups),
        lambda _: LEARNING_RATE,
        dtype=dtype,
        max_grad_norm=recipe.optimizer.max_grad_norm,
    )
    return curve.losses, {name: weight.cpu() for name, weight in curve.weights.items()}


def _killable(setting: Setting) -> tuple[Any, Path]:
    checkpoint = {"checkpoint.every_steps": 2, "checkpoint.export": True, "checkpoint.export_dtype": "fp32"}
    return _recipe(setting, checkpoint, LONG), setting.place(KILLED)


def _until_killed(setting: Setting, _: float) -> Record:
    """Train until a checkpoint lies there; then this process is gone."""
    from toolkit.checkpoint.manifest import complete_steps

    recipe, folder = _killable(setting)

    def strike() -> None:
        while not complete_steps(folder / "checkpoints"):
            time.sleep(0.001)
        time.sleep(0.02)  # in a step or in the next save, nobody knows where
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=strike, daemon=True).start()
    _train(setting, recipe, folder)
    raise AssertionError(f"all {LONG} steps were taken before the process was killed")


def _resume(setting: Setting, _: float) -> Record:
    """Go on with the killed run to its end; losses, and the weights of the reloaded export, are plain PyTorch's."""
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.checkpoint.manifest import complete_steps
    from toolkit.parity.work import weight_deviation

    recipe, folder = _killable(setting)
    found = complete_steps(folder / "checkpoints")
    assert found and found[-1] < LONG, f"the killed run left the checkpoints {found}"
    records = _train(setting, recipe, folder, resume="auto")
    assert [record["step"] for record in records] == list(range(1, LONG + 1)), "steps are missing, or there twice"
    losses, weights = _reference(setting, "fp32", LONG)
    exported = AutoModelForCausalLM.from_pretrained(folder / "export", dtype=torch.float32)
    apart = weight_deviation(dict(exported.named_parameters()), weights)
    assert apart < 1e-3, f"the exported weights are {apart:.1e} from plain PyTorch's, relative to their norm"
    return {"resumed_from": found[-1], "weights": apart, **_judged(_losses(records), losses, "fp32")}
