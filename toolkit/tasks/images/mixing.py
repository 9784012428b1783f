"""Two images as one, with both their classes: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]


def mixed(
    pixels: Pixels, other: Pixels, mixup_alpha: float, cutmix_alpha: float, random: np.random.Generator
) -> tuple[Pixels, float]:
    """`pixels` [3, H, W] with something of `other`, and the share of `pixels` in the result.

    Where both alphas are above 0, one of both ways by the toss of a coin.
    """
    cuts = cutmix_alpha > 0.0 and (mixup_alpha == 0.0 or random.random() < 0.5)
    alpha = cutmix_alpha if cuts else mixup_alpha
    share = float(random.beta(alpha, alpha))
    if not cuts:
        return np.float32(share) * pixels + np.float32(1.0 - share) * other, share
    _, height, width = pixels.shape
    high, wide = (round(side * math.sqrt(1.0 - share)) for side in (height, width))
    middle, centre = int(random.integers(height)), int(random.integers(width))
    rows = slice(max(0, middle - high // 2), min(height, middle + (high + 1) // 2))
    columns = slice(max(0, centre - wide // 2), min(width, centre + (wide + 1) // 2))
    found = pixels.copy()
    found[:, rows, columns] = other[:, rows, columns]
    # What lies outside the image is not pasted: the share is that of the pixels that stayed.
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return found, 1.0 - pasted / (height * width)
