"""An exponential moving average of the weights, kept by each rank for the part of the master weights that it owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from toolkit.engine.fragments import master_weights, publish


class WeightAverage:
    """Averages of the master weights of `engine` and of the further `tensors` by name, in fp32.

    After update t (0 is the first) average <- d average + (1 - d) weights, with d = min(decay, (1 + t) / (10 + t)), so that
    a short run does not keep its first weights (TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, engine: Any, decay: float, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self._engine, self._decay, self._beside = engine, decay, tensors
        self.updates = 0
        self.masters = [weights.float().clone() for weights in master_weights(engine)]
        """One for each of `master_weights`, in their order."""
        self.beside = {name: tensor.detach().float().clone() for name, tensor in tensors().items()}
        """Those of the further tensors."""

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the average."""
        share = 1.0 - min(self._decay, (1.0 + self.updates) / (10.0 + self.updates))
        for average, weights in self._pairs():
            average.lerp_(weights.to(average.device, torch.float32), share)
        self.updates += 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Compute with the averages for a while. Collective."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weights in self._pairs():
            before = weights.float().clone()
            weights.copy_(average)
            average.copy_(before)
        publish(self._engine)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.masters, master_weights(self._engine), strict=True)
        yield from ((self.beside[name], tensor) for name, tensor in self._beside().items())
