"""Speed of making images against what training consumes: decoding, augmentation, normalisation, and nothing else beside it.

Batches are built by the threads that a rank has (data.workers) while nothing is trained; then a few steps are trained with
the same batches built ahead. Photographs are JPEG files of 500 x 375 pixels, as those of ImageNet are on average, drawn as
smooth noise; "everything" is a random part, a mirror image, RandAugment, erasing, mixup and CutMix. Rates count images; on
faster devices training consumes more, so compare the rates with your own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.page import parser, publish, table, tracked

FASTER = 3.0
"""Target: images per second of the data path over those of training."""
CLASSES, PHOTOGRAPHS = 4, 256


@dataclass(frozen=True)
class Case:
    """What is trained on what."""

    model: dict[str, Any]
    task: dict[str, Any]
    data: str | None
    """A name that `toolkit fetch` knows; None: photographs."""
    micro_size: int
    tiny: dict[str, Any] = field(default_factory=dict)
    """Fields of the model with --tiny."""


SCRATCH = {"architecture": "resnet", "weights": "random"}
RESNET_18 = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
SMALL = {"config": {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}}
EVERYTHING = {"rand_augment": 9, "random_erasing": 0.25, "mixup_alpha": 0.2, "cutmix_alpha": 1.0}
CASES = {
    "ResNet-18, clothes at 32 pixels": Case(
        {**SCRATCH, "config": RESNET_18}, {"image_size": 32, "random_crop": "padded"}, "fashion-mnist", 64, SMALL
    ),
    "EfficientNet-Lite0, clothes at 64 pixels": Case(
        {"path": "efficientnet-lite0"},
        {"image_size": 64, "random_crop": "none"},
        "fashion-mnist",
        16,
        {**SCRATCH, **SMALL},
    ),
    "ResNet-50, photographs at 224 pixels": Case(SCRATCH, {"image_size": 224}, None, 16, SMALL),
    "ResNet-50, photographs, everything": Case(SCRATCH, {"image_size": 224, **EVERYTHING}, None, 16, SMALL),
}


def main(arguments: list[str]) -> None:
    """Measure and publish; ends with an error where the data path is slower than the target."""
    made = parser(__doc__, __file__)
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    options = made.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    rows, slow = [], []
    with tempfile.TemporaryDirectory(prefix="image_path_") as folder:
        photographs = draw(Path(folder) / "photographs", 12 if options.tiny else PHOTOGRAPHS)
        for name in tracked(options.cases, "cases"):
            made_per_second, alone, trained = measured(CASES[name], photographs, Path(folder) / "run", options)
            share = made_per_second / trained
            slow += [name] if share < FASTER else []
            rates = (f"{rate:,.0f}" for rate in (trained, alone, made_per_second))
            rows.append([name, *rates, f"**{share:.1f}**"])
    header = ["", "trained, images/s", "made by one thread", f"by {cores} threads", "times training"]
    target = (
        f"Target: at least {FASTER:g} times training, in {number_format()} here, the faster format of convolutions."
    )
    publish(options, "The data path of images", [str(__doc__).strip(), table(header, rows), target])
    if slow and not options.tiny:
        sys.exit(f"target missed: {', '.join(slow)}")


def number_format() -> str:
    """What convolutions are fast in: fp32 on a CPU, whose bf16 is for matrix products."""
    import torch

    return "bf16" if torch.cuda.is_available() else "fp32"


def draw(folder: Path, count: int) -> Path:
    """`count` JPEG files in folders of classes."""
    import numpy as np
    from PIL import Image

    random = np.random.Generator(np.random.PCG64(0))
    for number in range(count):
        small = Image.fromarray(random.integers(0, 255, (47, 63, 3), np.uint8))
        place = folder / f"class{number % CLASSES}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        small.resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=90)
    return folder


def measured(case: Case, photographs: Path, folder: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Images per second: made by all threads, by one, and trained."""
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    steps = 2 if options.tiny else 8
    recipe = build(case, photographs, steps, options)
    rates = []
    for workers in (None, 0):
        data = recipe.data.model_copy(update={"workers": workers})
        batches = prepare_inputs(recipe.model_copy(update={"data": data}), 0, 1, Display(is_main=False)).batches
        began, images = time.perf_counter(), 0
        for batch in batches.iterate(0, 10**6):
            images += batch.num_samples
            if time.perf_counter() - began > (0.1 if options.tiny else 5.0):
                break
        rates.append(images / (time.perf_counter() - began))
    return rates[0], rates[1], trained(recipe, folder)


def build(case: Case, photographs: Path, steps: int, options: argparse.Namespace) -> Any:
    """The recipe of `case`."""
    from toolkit import (
        Batch,
        Checkpoint,
        Data,
        ImageClassification,
        Model,
        Optimizer,
        Parallel,
        Precision,
        Recipe,
        Tracking,
    )

    is_own = case.data is None or options.tiny
    model = (
        {key: value for key, value in case.model.items() if key != "path" or not case.tiny}
        if options.tiny
        else case.model
    )
    return Recipe(
        model=Model(**{**model, **(case.tiny if options.tiny else {})}),
        data=Data(train=str(photographs) if is_own else str(case.data), packing=False),
        task=ImageClassification(**{**case.task, **({"image_size": 32} if options.tiny else {})}),
        batch=Batch(
            global_size=4 if options.tiny else case.micro_size, micro_size=4 if options.tiny else case.micro_size
        ),
        optimizer=Optimizer(learning_rate=1e-4),
        precision=Precision(dtype=number_format()),
        parallel=Parallel(zero_stage=1),
        checkpoint=Checkpoint(export=False),
        tracking=Tracking(tensorboard=False),
        steps=steps,
    )


def trained(recipe: Any, folder: Path) -> float:
    """Images per second of a run, its first step left out."""
    from toolkit.train.run import RunOptions, train

    with contextlib.redirect_stdout(io.StringIO()):
        train(recipe, RunOptions("image_path", folder))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(folder)
    steps = [record for record in records if "loss" in record][1:]
    return float(sum(record["samples"] for record in steps) / sum(record["step_time_s"] for record in steps))


if __name__ == "__main__":
    main(sys.argv[1:])
