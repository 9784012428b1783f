"""What SpecAugment (Park et al. 2019, arXiv 1904.08779) hides of an example, drawn as transformers draws it, by the example's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
LEAST_OF_TIME = 2
"""Stretches of time that are hidden at least, as transformers' configs have it."""


def stretches(length: int, share: float, width: int, random: np.random.Generator, *, least: int = 0) -> Mask:
    """[length]: which places are hidden, in stretches of `width` that may overlap and make up `share` at most.

    How many there are is rounded up or down at random so that their mean is right; at least `least`, where they fit.
    """
    hidden = np.zeros(length, np.bool_)
    if not share or length < width:
        return hidden
    count = max(int(share * length / width + random.random()), least)
    count = min(count, length // width, length - width + 1)
    starts = random.choice(length - width + 1, count, replace=False)
    hidden[(starts[:, None] + np.arange(width)).ravel()] = True
    return hidden


def hidden_parts(options: Any, frames: int, features: int, random: np.random.Generator) -> tuple[Mask, Mask]:
    """Frames and features that the fields of `options`, a section of speech, hide of a recording."""
    times = stretches(frames, options.mask_time_prob, options.mask_time_length, random, least=LEAST_OF_TIME)
    return times, stretches(features, options.mask_feature_prob, options.mask_feature_length, random)


def hides(options: Any) -> bool:
    """Whether training hides anything."""
    return bool(options.mask_time_prob or options.mask_feature_prob)


def padded_masks(masks: Sequence[Mask]) -> Mask:
    """[B, longest]: nothing is hidden behind the end of a shorter one."""
    found = np.zeros((len(masks), max(map(len, masks))), np.bool_)
    for row, mask in zip(found, masks, strict=True):
        row[: len(mask)] = mask
    return found
