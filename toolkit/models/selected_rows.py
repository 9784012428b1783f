"""A head that computes some tokens alone: logits of those that carry loss, not of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.agreement import excess, vocabulary_size

PROBE = (2, 5)
"""Rows and tokens of the texts of the probe."""


class SelectedRows:
    """Cuts what a model's base model returns down to chosen tokens, for heads that look at each token by itself.

    A forward hook of the base model, so that the head stays the model's own code. It does nothing until `choose` has found
    that the head gives the same logits so.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active = False
        self._rows: Tensor | None = None
        self._base: nn.Module = model.base_model  # type: ignore[assignment]
        if self._base is not model:
            self._base.register_forward_hook(self._select)

    def choose(self, model: nn.Module) -> None:
        """Ask `model`, and be active from then on if its head allows it. Without gradients."""
        if self._base is not model.base_model or self._base is model:
            return
        device, vocabulary = next(model.parameters()).device, vocabulary_size(model)
        places = torch.arange(PROBE[0] * PROBE[1], device=device)
        tokens = (2 + places * 7 % (vocabulary - 2)).view(PROBE)
        rows = places[1::3]
        wanted = model(input_ids=tokens).logits
        try:
            with self._selecting(rows):
                found = model(input_ids=tokens).logits
        except (RuntimeError, IndexError, ValueError):
            return  # a head that needs whole texts fails on a few tokens, and all ranks alike
        if found.shape == (1, len(rows), wanted.shape[-1]):
            self.active = excess(model, found[0].float(), wanted.flatten(0, 1)[rows].float()) < 1.0

    def logits(self, model: nn.Module, inputs: dict[str, Any], rows: Tensor) -> Tensor:
        """Logits [M, V] in fp32 of the tokens `rows` [M], counted over the whole batch."""
        if not self.active:
            every: Tensor = model(**inputs).logits
            return every.flatten(0, 1)[rows].float()
        with self._selecting(rows):
            chosen: Tensor = model(**inputs).logits
        return chosen[0].float()

    @contextmanager
    def _selecting(self, rows: Tensor) -> Iterator[None]:
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def _select(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self._rows is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self._rows].unsqueeze(0)
        return output
