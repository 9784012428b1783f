"""Run a function on several gloo ranks, through the server that `toolkit parity` has; it starts once per test session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.train.ranks import RankFailed, run

__all__ = ["RankFailed", "run_distributed"]


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Results of `function(rank, world_size, *args)` on each rank, in rank order: see `toolkit.train.ranks.run`."""
    return run(function, world_size, *args, timeout_s=timeout_s)
