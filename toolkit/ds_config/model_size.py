"""The size of a model, as far as ZeRO's buckets follow it. Pure numbers: whoever builds models counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """Of the whole model, whatever a rank holds of it. In parameters."""

    layer: int
    """The largest layer."""
    longest_vector: int
    """The largest norm weight or bias."""
    trained: int | None = None
    """What is trained of it: the adapters. None: all."""


UNKNOWN = ModelSize(layer=500_000_000, longest_vector=100_000)
"""Where no model is at hand: buckets as large as they become."""

LEAST_BUCKET = 1_000_000
"""Elements. Below it a collective costs its latency."""

LARGEST_BUCKET = 50_000_000
"""Elements. Above it nothing is gained and memory is lost."""


def bucket_size(model: ModelSize) -> int:
    """Elements that are reduced, or fetched ahead, at a time: those of one layer, within bounds."""
    return min(max(model.layer, LEAST_BUCKET), LARGEST_BUCKET)


def reduced_size(model: ModelSize) -> int:
    """Elements of gradients that are reduced at a time: no more than there are."""
    size = bucket_size(model)
    return size if model.trained is None else min(size, max(model.trained, LEAST_BUCKET))


def live_parameters(model: ModelSize) -> int:
    """Parameters that stage 3 may hold gathered: the layer that computes and the one that is fetched meanwhile.

    With DeepSpeed's default of 10^9 a model below that size stays gathered as a whole from its second forward pass on.
    """
    return max(2 * model.layer, LEAST_BUCKET)
