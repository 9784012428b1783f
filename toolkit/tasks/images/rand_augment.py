"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): a few operations, drawn for each image, all of one magnitude.

Operations and their ranges are torchvision's (transforms/autoaugment.py), of 31 magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAGNITUDES = 30
FILL = (128, 128, 128)

Operation = Callable[[Image.Image, float], Image.Image]
"""(image, share of the largest magnitude, -1 to 1) -> image."""


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, share: kind(image).enhance(1.0 + 0.9 * share)


SIGNED: dict[str, Operation] = {
    "shear_x": lambda image, share: _affine(image, 1, 0.3 * share, 0, 0, 1, 0),
    "shear_y": lambda image, share: _affine(image, 1, 0, 0, 0.3 * share, 1, 0),
    "translate_x": lambda image, share: _affine(image, 1, 0, 150 / 331 * image.width * share, 0, 1, 0),
    "translate_y": lambda image, share: _affine(image, 1, 0, 0, 0, 1, 150 / 331 * image.height * share),
    "rotate": lambda image, share: image.rotate(30 * share, Image.Resampling.NEAREST, fillcolor=FILL),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
}
"""Operations whose direction is drawn, too."""
UNSIGNED: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "posterize": lambda image, share: ImageOps.posterize(image, 8 - round(4 * share)),
    "solarize": lambda image, share: ImageOps.solarize(image, round(255 * (1 - share))),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}
OPERATIONS = {**UNSIGNED, **SIGNED}


def rand_augment(image: Image.Image, magnitude: int, operations: int, random: np.random.Generator) -> Image.Image:
    """`image` after `operations` of OPERATIONS, drawn with replacement, of `magnitude`, 0 to 30."""
    names = list(OPERATIONS)
    for _ in range(operations):
        name = names[int(random.integers(len(names)))]
        share = magnitude / MAGNITUDES
        if name in SIGNED and random.random() < 0.5:
            share = -share
        image = OPERATIONS[name](image, share)
    return image
