"""What the loop, the tasks and the checkpoints know of an engine, whichever strategy runs underneath."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from toolkit.engine.batch_norm import Statistics
from toolkit.engine.fragments import Fragment, Read, ReadScalars
from toolkit.engine.own_buffers import OwnBuffers
from toolkit.engine.stopwatch import Stopwatch
from toolkit.models.decoding import GenerationSettings

Batch = dict[str, torch.Tensor]
"""One micro-batch, as the task's collate made it."""

Losses = dict[str, float]
"""Named sums, added over batches and ranks."""

Found = Mapping[str, float | torch.Tensor]
"""What a function finds in one batch of such sums; 0-dim."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank."""

    loss: float
    """Mean over the targets of the global batch."""
    grad_norm: float | None
    """L2 norm of the averaged gradient before clipping; inf when fp16 overflowed. None for Muon, where DeepSpeed only
    knows the norm after orthogonalisation."""
    learning_rate: float
    """Rate the step used."""
    targets: int
    """Targets (trained tokens, or labels) in the global batch."""
    loss_scale: float | None
    """fp16's loss scale in this step; None in other formats."""
    skipped_in_a_row: int
    """Steps up to and with this one that were not applied, because gradients overflowed."""
    aux_loss: float | None = None
    """What was trained on top of `loss` (the balancing loss of a mixture's routers, times its coefficient); None: nothing."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Further means over the targets, by the names of the task."""

    @property
    def skipped(self) -> bool:
        """Whether this step was not applied."""
        return self.skipped_in_a_row > 0


class Engine(Protocol):
    """See `toolkit.engine.zero.ZeroEngine` for what each method promises."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def loss_scale(self) -> float | None: ...

    def time(self, stopwatch: Stopwatch) -> None: ...

    def train_step(self, micro_batches: Sequence[Batch], seeds: Sequence[int]) -> StepResult: ...

    def evaluate(self, batches: Iterator[Batch], function: Callable[[nn.Module, Batch], Found]) -> Losses: ...

    def observe(self, metric: float) -> None: ...

    def forget_observed(self) -> None: ...

    def averaged(self) -> AbstractContextManager[None]: ...

    @property
    def statistics(self) -> Statistics | None: ...

    @property
    def own_buffers(self) -> OwnBuffers | None: ...

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any: ...

    def generate(self, batch: Batch, settings: GenerationSettings) -> list[list[int]]: ...

    def fragments(self) -> Iterator[Fragment]: ...

    def restore(self, read: Read, read_scalars: ReadScalars) -> None: ...

    def shapes(self) -> dict[str, list[int]]: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...
