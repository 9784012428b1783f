"""Experts with weights of their own under ZeRO-3: ranks whose tokens choose different ones train on one curve."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed import RankFailed, run_distributed
from toolkit.engine.experts import gather_experts_whole

STEPS, WIDTH = 4, 8


class Block(nn.Module):
    """A list of experts, of which each call uses one: the list itself is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: torch.Tensor, choice: int) -> torch.Tensor:
        found: torch.Tensor = hidden + self.experts[choice](hidden)
        return found


class Network(nn.Module):
    """Two such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, hidden: torch.Tensor, choice: int) -> torch.Tensor:
        hidden = self.inner(hidden)
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, (choice + number) % 4)
        return hidden.square().mean()


def problem() -> tuple[Network, list[tuple[torch.Tensor, int]]]:
    """The same weights and data everywhere: one (input, expert) for each rank."""
    torch.manual_seed(0)
    return Network(), [(torch.randn(5, WIDTH), rank) for rank in range(2)]


def plain() -> list[float]:
    """Mean loss of each step in one process."""
    network, data = problem()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sum((network(*one) for one in data), torch.zeros(())) / len(data)
        loss.backward()
        # AdamW skips what has no gradient; ZeRO updates it with zeros.
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def partitioned(rank: int, world_size: int, gather: bool) -> list[float]:
    """This rank's losses under ZeRO-3."""
    import deepspeed

    network, data = problem()
    names = gather_experts_whole(network) if gather else []
    assert names == (["blocks.0", "blocks.1"] if gather else [])
    engine, *_ = deepspeed.initialize(
        model=network,
        model_parameters=copy.copy(list(network.parameters())),
        config={
            "train_batch_size": world_size,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.0, "torch_adam": True}},
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        },
        dist_init_required=False,
    )
    losses = []
    for _ in range(STEPS):
        loss: Any = engine(*data[rank])
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def test_ranks_may_choose_different_experts() -> None:
    """The mean of the ranks' losses is the plain one, step by step."""
    found = run_distributed(partitioned, 2, True)
    assert [sum(losses) / 2 for losses in zip(*found, strict=True)] == pytest.approx(plain(), rel=1e-5)


def test_without_leaves_the_ranks_disagree() -> None:
    """Why the engine does it: the day this trains, `gather_experts_whole` can go."""
    with pytest.raises(RankFailed, match="Detected a disagreement on list"):
        run_distributed(partitioned, 2, False, timeout_s=60)
