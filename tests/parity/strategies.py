"""Recipes of the parity tests: one tiny problem per task, and the layouts each strategy is trained in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.parity.strategies import Strategy
from toolkit.recipe import (
    Batch,
    Checkpoint,
    Data,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    Task,
    Tracking,
)

GLOBAL_SIZE = 8
"""Sequences per step of every parity test."""

# At 3e-3 the tiny models spike once in 20 steps, and at that step the reference differs from itself by a percent when
# its micro-batches are cut otherwise; at 1e-3 a deviation means something.
OPTIMIZER = Optimizer(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.3, implementation="torch")
SCHEDULE = Schedule(type="linear", warmup_steps=3)


def precision(dtype: Any) -> Precision:
    """No overflow in the first steps: the reference does not skip any."""
    return Precision(dtype=dtype, **({"initial_scale_power": 8} if dtype == "fp16" else {}))


def worlds(strategy: Strategy) -> tuple[int, ...]:
    """World sizes to train `strategy` on: one rank and two where that is possible."""
    return (1, 2) if strategy.ranks_per_replica == 1 else (strategy.world_size,)


def micro_size(strategy: Strategy, world_size: int, accumulation: int) -> int:
    """Sequences per micro-batch that make GLOBAL_SIZE of `accumulation` micro-batches per replica."""
    return GLOBAL_SIZE * strategy.ranks_per_replica // (world_size * accumulation)


def recipe(task_name: str, model_dir: Path, data_file: Path, /, **changes: Any) -> Recipe:
    """Ragged, masked, packed (causal LM) data; clipping that bites; weight decay; warm-up and decay."""
    packed = task_name == "causal_lm"
    sections: dict[str, Any] = {
        "model": Model(path=str(model_dir), dropout=None if packed else 0.0),
        "data": Data(train=str(data_file), packing=packed, prefetch=0),
        "task": Task.kind(task_name)(),
        "batch": Batch(global_size=GLOBAL_SIZE, micro_size=1, sequence_length=128),
        "optimizer": OPTIMIZER,
        "schedule": SCHEDULE,
        "precision": Precision(dtype="fp32"),
        "parallel": Parallel(zero_stage=1),
        "checkpoint": Checkpoint(export=False),
        "tracking": Tracking(tensorboard=False),
        "steps": 20,
    }
    return Recipe(**{**sections, **changes})
