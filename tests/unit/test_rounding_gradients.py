"""What the judge knows of gradients that are zero but for rounding, and what of two sets of weights is compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from toolkit.parity.reference import ROUNDING, Batch, train
from toolkit.parity.work import weight_deviation


class Scores(nn.Module):
    """A score per token; a bias that all of them share changes nothing about which is the largest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(8, 1)


class Judge:
    def begin(self, model: Any, micro_batches: Any) -> None: ...

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        scores = model.score(batch["states"])[..., 0]
        return nn.functional.cross_entropy(scores.double(), batch["labels"], reduction="sum")


def test_a_bias_that_a_softmax_takes_away_has_rounding_for_a_gradient() -> None:
    torch.manual_seed(1)
    steps = [[{"states": torch.randn(16, 12, 8), "labels": torch.randint(0, 12, (16,))}] for _ in range(3)]
    curve = train(
        Scores(), steps, lambda groups: torch.optim.AdamW(groups, lr=1.0), lambda _: 1e-3, judge=lambda _: Judge()
    )
    assert curve.shares["score.weight"] > 0.99 and 0.0 < curve.shares["score.bias"] < ROUNDING


def test_what_is_left_out_counts_nothing() -> None:
    wanted = {"a": torch.ones(4), "b": torch.ones(4)}
    found = {"a": torch.ones(4), "b": torch.full((4,), 2.0)}
    assert weight_deviation(found, wanted, ["b"]) == 0.0
    assert math.isclose(weight_deviation(found, wanted), 2.0 / math.sqrt(8.0), rel_tol=1e-6)
    assert weight_deviation({"a": found["a"]}, wanted, ["b"]) == math.inf
