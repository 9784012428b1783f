"""The gradient norm that DeepSpeed takes before an update, read without waiting for the update."""

from __future__ import annotations

from typing import Any

import torch

from toolkit.engine import device


class NormReader:
    """Copies the norm to the host between DeepSpeed's taking it and the first kernel of the update.

    Read after the step, it would wait until the device has finished the step; so the device goes on while the host
    prepares the next one.
    """

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        """`engine` is DeepSpeed's, `optimizer` the one that its ZeRO optimizer calls."""
        self._engine = engine
        self._copy: torch.Tensor | None = None
        self._copied: Any = None
        optimizer.register_step_pre_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        norm = getattr(self._engine.optimizer, "_global_grad_norm", None)
        # Called once for each of the optimizer's flat groups.
        if self._copy is None and torch.is_tensor(norm):
            self._copy = norm.detach().to("cpu", non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event() if device.kind() == "cuda" else None

    def read(self) -> float:
        """Norm of the step just taken; inf for one that was left out."""
        copy, self._copy = self._copy, None
        if copy is None:
            return float(self._engine.get_global_grad_norm())
        if self._copied is not None:
            self._copied.synchronize()
        return float(copy)
