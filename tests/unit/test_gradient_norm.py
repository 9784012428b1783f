"""The norm of a whole gradient, where DeepSpeed does not tell it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.engine.tensor import gradient_norm


def test_many_small_squares_beside_large_ones_are_not_lost() -> None:
    """In fp32 the squares of three million numbers came out too small; parameters without a gradient count nothing."""
    model = nn.Sequential(nn.Embedding(50_000, 64), nn.Linear(64, 3), nn.Linear(3, 3))
    generator = torch.Generator().manual_seed(0)
    for parameter, scale in zip(model[:2].parameters(), (1e-3, 10.0, 1e-8), strict=True):
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    flat = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    assert gradient_norm(model, None) == pytest.approx(float(flat.norm()), rel=1e-12)


def test_no_gradient_has_norm_zero() -> None:
    assert gradient_norm(nn.Linear(2, 2), None) == 0.0
