"""What training sees of an image: parts of it, mirrored, recoloured. Each function draws from the generator it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from toolkit.tasks.images.rand_augment import rand_augment

Random = np.random.Generator
Pixels = NDArray[np.float32]
"""[3, height, width], normalised."""

ATTEMPTS = 10
"""Parts of an image that are drawn until one fits into it; as in torchvision."""
ERASED = (0.02, 0.33)
"""Least and largest share of the image that is erased."""
ERASED_RATIO = (0.3, 3.3)
"""Least and largest height / width of it."""


@dataclass(frozen=True)
class Crop:
    """How a square of `side` pixels is taken out of an image."""

    kind: str
    side: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    padding: int
    resample: int


def crop(image: Image.Image, how: Crop, random: Random) -> Image.Image:
    """A square of `image`."""
    square = (how.side, how.side)
    if how.kind == "resized":
        return image.resize(square, how.resample, box=_part(image.size, how, random))
    shifted = ImageOps.expand(image.resize(square, how.resample), how.padding)
    left, top = (int(random.integers(0, 2 * how.padding + 1)) for _ in range(2))
    return shifted.crop((left, top, left + how.side, top + how.side))


def _part(size: tuple[int, int], how: Crop, random: Random) -> tuple[float, float, float, float]:
    """A box of random area and shape; the largest in the middle where none fits (torchvision's RandomResizedCrop)."""
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*how.scale)
        ratio = math.exp(random.uniform(math.log(how.ratio[0]), math.log(how.ratio[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.integers(0, width - wide + 1)), int(random.integers(0, height - high + 1))
            return left, top, left + wide, top + high
    wide = min(width, round(height * how.ratio[1]))
    high = min(height, round(width / how.ratio[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def flip(image: Image.Image, probability: float, random: Random) -> Image.Image:
    """`image`, mirrored or not."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < probability else image


def jitter(image: Image.Image, strength: float, random: Random) -> Image.Image:
    """`image` with other brightness, contrast and saturation, changed in random order."""
    for number in random.permutation(3):
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
        image = enhance(image).enhance(random.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return image


def recolour(image: Image.Image, magnitude: int, operations: int, random: Random) -> Image.Image:
    """`image` after RandAugment, if `magnitude` is not 0."""
    return rand_augment(image, magnitude, operations, random) if magnitude else image


def erase(pixels: Pixels, probability: float, random: Random) -> Pixels:
    """`pixels` with a rectangle of noise, or as they are."""
    if random.random() >= probability:
        return pixels
    _, height, width = pixels.shape
    for _ in range(ATTEMPTS):
        area = height * width * random.uniform(*ERASED)
        ratio = math.exp(random.uniform(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < high < height and 0 < wide < width:
            top, left = int(random.integers(0, height - high + 1)), int(random.integers(0, width - wide + 1))
            pixels[:, top : top + high, left : left + wide] = random.standard_normal((3, high, wide), np.float32)
            break
    return pixels
