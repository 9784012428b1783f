"""Folders of small pictures and tiny classifiers of them, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

CLASSES = ("circle", "stripes", "square")
SIDE = 16

CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {
        "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    "vit": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": SIDE, "patch_size": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    },
    "efficientnet": {
        "image_size": SIDE, "width_coefficient": 0.125, "depth_coefficient": 1.0, "hidden_dim": 160, "depth_divisor": 4,
        "kernel_sizes": [3, 3], "in_channels": [32, 32], "out_channels": [32, 64], "strides": [1, 2],
        "num_block_repeats": [1, 1], "expand_ratios": [1, 4], "depthwise_padding": [],
        "dropout_rate": 0.0, "drop_connect_rate": 0.0, "batch_norm_momentum": 0.1,
    },
}  # fmt: skip


def picture(kind: str, random: np.random.Generator, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A picture of a class of CLASSES in noise, `size` (width, height)."""
    width, height = size
    pixels = random.integers(0, 80, (height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    middle, centre = random.integers(6, height - 6), random.integers(6, width - 6)
    colour = random.integers(120, 255, 3)
    if kind == "circle":
        shape = (rows - middle) ** 2 + (columns - centre) ** 2 < 25
    elif kind == "square":
        shape = (abs(rows - middle) < 5) & (abs(columns - centre) < 5)
    else:
        shape = (columns + int(random.integers(4))) % 4 < 2
    pixels[shape] = colour
    return Image.fromarray(pixels)


def folder(place: Path, train: int = 36, test: int = 12, ending: str = "png") -> Path:
    """`place`/SPLIT/CLASS/NUMBER.png."""
    random = np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            kind = CLASSES[number % len(CLASSES)]
            file = place / split / kind / f"{number:03d}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(kind, random).save(file)
    return place


def checkpoint(kind: str, place: Path) -> Path:
    """A tiny classifier of other classes with an image processor, as a Hugging Face directory."""
    from transformers import CONFIG_MAPPING
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**CONFIGS[kind], num_labels=2)
    model = AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # a checkpoint has seen something
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    model.save_pretrained(place)
    ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.4] * 3, image_std=[0.3] * 3
    ).save_pretrained(place)
    return place


def details(run: Path, step: int) -> Any:
    """What a run keeps beside the predictions of an evaluation."""
    return json.loads((run / "predictions" / f"step-{step:08d}.details.json").read_text())
