"""ZeRO in fp32 holds weights and gradients once, and computes what plain PyTorch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed import run_distributed

STEPS, RANKS, MICRO_BATCHES, RATE = 4, 2, 2, 1e-2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))


def batches() -> torch.Tensor:
    """[STEPS, MICRO_BATCHES, RANKS, 3, 6]."""
    return torch.randn(STEPS, MICRO_BATCHES, RANKS, 3, 6, generator=torch.Generator().manual_seed(1))


def plain() -> dict[str, torch.Tensor]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    for step in batches():
        optimizer.zero_grad()
        model(step.flatten(0, -2)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def trained(rank: int, world_size: int, stage: int) -> tuple[dict[str, torch.Tensor], int, list[bool]]:
    """Weights after the last step, elements of the masters, and of each whether it is the weights' memory."""
    import deepspeed

    from toolkit.engine.lean import keep_once

    config: dict[str, Any] = {
        "train_batch_size": world_size * MICRO_BATCHES,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": RATE, "weight_decay": 1e-2, "torch_adam": True}},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 40,
            "allgather_bucket_size": 40,
            "stage3_param_persistence_threshold": 0,
            "sub_group_size": 30,
        },
    }
    model = network()
    engine, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)
    keep_once(engine.optimizer)
    for step in batches():
        for micro_batch in step:
            engine.backward(engine(micro_batch[rank]).square().mean())
            engine.step()
    outer = engine.optimizer
    if stage == 3:
        masters, weights = outer.fp32_partitioned_groups_flat, outer.fp16_partitioned_groups_flat
    else:
        masters = outer.single_partition_of_fp32_groups
        weights = [parts[rank] for parts in outer.parallel_partitioned_bit16_groups]
    shared = [master.data_ptr() == weight.data_ptr() for master, weight in zip(masters, weights, strict=True)]
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        values = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine.destroy()
    return values, sum(master.numel() for master in masters), shared


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_masters_are_the_weights(stage: int) -> None:
    wanted = plain()
    for values, held, shared in run_distributed(trained, RANKS, stage):
        assert all(shared) and held < sum(value.numel() for value in wanted.values()) * 0.6
        for name, value in values.items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6)
