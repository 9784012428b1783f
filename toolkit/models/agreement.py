"""Whether two ways of computing a model's hidden states agree: the measure of every start-up probe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.errors import ModelError
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_by_positions, lengths_tensor, tell_documents
from toolkit.models.grid_positions import as_taken

LARGEST = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest relative difference that is rounding, by the format of the weights."""

LARGEST_16_BIT = 0.2
"""The same in 16 bits. Rounding reaches a few percent in a deep model, and more where it sends a token to another expert."""


class Alternative:
    """Another way of computing parts of a model, which can be switched off to be compared with the model's own."""

    def __init__(self) -> None:
        self.active = True

    @contextmanager
    def _off(self) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def _excess(self, model: nn.Module, length: int) -> float:
        """How far it moves the hidden states of a text of `length` tokens: see `excess`."""
        positions = torch.arange(length, device=next(model.parameters()).device).unsqueeze(0)
        tokens = (positions * 7 + 1) % vocabulary_size(model)
        with self._off():
            wanted = hidden_states(model, tokens, positions)
        return excess(model, hidden_states(model, tokens, positions), wanted)


def hidden_states(
    model: nn.Module, tokens: Tensor, positions: Tensor | None, documents: list[list[int]] | None = None
) -> Tensor:
    """Last hidden states [B, T, D] of token ids [B, T] at positions [B, T], in fp32; None: at the model's own.

    `documents` are each row's lengths, of the whole row where these are its tokens on one rank; found in the positions
    where not given. Logits [B, T, V] where the architecture does not show its base model (Llama 4). Raises ModelError
    for numbers that are not finite.
    """
    base: nn.Module = model.base_model  # type: ignore[assignment]
    inputs = {"input_ids": tokens}
    if positions is not None and takes_positions(model):
        inputs["position_ids"] = as_taken(model, positions)
        inputs[DOCUMENT_LENGTHS] = lengths_tensor(documents or lengths_by_positions(positions))
    output = base(**tell_documents(model, inputs), use_cache=False)
    found: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits
    if not found.isfinite().all():
        dtype = str(found.dtype).removeprefix("torch.")
        raise ModelError(
            f"{type(model).__name__} computes NaN or infinite numbers from its starting weights, in {dtype}",
            expected="finite weights, and a number format that holds what they compute",
            do="download the weights at model.path again; in fp16 set precision.dtype='bf16'",
        )
    return found.float()


def vocabulary_size(model: nn.Module) -> int:
    """Token ids that the model knows."""
    return int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]


def takes_positions(model: nn.Module) -> bool:
    """Whether positions can be given to the model (BLOOM counts tokens itself)."""
    return "position_ids" in inspect.signature(model.base_model.forward).parameters  # type: ignore[union-attr]


def excess(model: nn.Module, found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to that of `wanted`, in multiples of what rounding explains; inf for NaN.

    Above 1 the two are not the same computation.
    """
    difference = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
    rounding = LARGEST.get(next(model.parameters()).dtype, LARGEST_16_BIT)
    return difference / rounding if math.isfinite(difference) else math.inf
