"""What sequence parallelism is tried on before it trains: rows of which each rank is given its part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.models.agreement import excess, hidden_states, vocabulary_size
from toolkit.models.attention import lengths_by_positions

TOKENS = 8
"""Of each rank's part."""

DOCUMENTS = (11, 5)
"""Tokens per document of each row of a packed probe. Some reach over the ends of the ranks' parts: eight is no multiple
of either."""

PADDING = (0, 5)
"""Tokens of padding at the end of each row of a padded probe."""


@dataclass(frozen=True)
class Probe:
    """Two rows; all tensors are [2, T]."""

    tokens: Tensor
    positions: Tensor
    documents: list[list[int]]
    """Tokens of each document of each row."""
    real: Tensor
    """Which tokens are no padding: only their hidden states are compared."""
    is_padded: bool
    """Whether the model tells documents apart by a mask of padding, and not by positions that restart."""

    def whole(self, model: nn.Module) -> Tensor:
        """The model's own hidden states [2, T, D] of the whole rows, in fp32."""
        if not self.is_padded:
            return hidden_states(model, self.tokens, self.positions)
        return self._masked(model, position_ids=self.positions)

    def part(self, model: nn.Module, mine: slice) -> Tensor:
        """Hidden states of the tokens `mine` of each row, which other ranks compute the others of."""
        return hidden_states(model, self.tokens[:, mine], self.positions[:, mine], self.documents)

    def miscounted(self, model: nn.Module) -> bool:
        """Whether our positions are others than the model's own where it counts by itself."""
        plain = self._plain_positions()
        given, own = self._masked(model, position_ids=plain), self._masked(model)
        return not excess(model, given[self.real], own[self.real]) < 1.0

    def _plain_positions(self) -> Tensor:
        first = self.positions[0, 0]
        return (first + torch.arange(self.tokens.shape[1], device=first.device)).expand_as(self.tokens)

    def _masked(self, model: nn.Module, **positions: Tensor) -> Tensor:
        base: nn.Module = model.base_model  # type: ignore[assignment]
        found: Tensor = base(input_ids=self.tokens, attention_mask=self.real.long(), **positions).last_hidden_state
        return found.float()


def packed_probe(model: nn.Module, count: int, longest: int) -> Probe:
    """Packed documents for `count` ranks, of which the last stands at the end of a context of `longest` tokens."""
    length = count * TOKENS
    positions = torch.stack([torch.arange(length) % tokens for tokens in DOCUMENTS])
    last = min(TOKENS // 2, longest)
    positions[:, -last:] = torch.arange(longest - last, longest)
    tokens = (torch.arange(2 * length) * 7 + 1).view(2, length) % vocabulary_size(model)
    device = next(model.parameters()).device
    real = torch.ones_like(tokens, dtype=torch.bool)
    return Probe(
        tokens.to(device), positions.to(device), lengths_by_positions(positions), real.to(device), is_padded=False
    )


def padded_probe(model: nn.Module, count: int, longest: int, first: int) -> Probe:
    """Texts with padding for `count` ranks, of which one ends at the end of a context of `longest` tokens; positions
    begin with `first`."""
    length = count * TOKENS
    positions = torch.arange(length).repeat(len(PADDING), 1)
    last = min(TOKENS // 2, longest)
    positions[0, -last:] = torch.arange(longest - last, longest)
    real = torch.arange(length) < length - torch.tensor(PADDING).unsqueeze(1)
    # None of them is a padding token, which some models look for: 0 and 1.
    tokens = 2 + (torch.arange(2 * length) * 7).view(2, length) % (vocabulary_size(model) - 2)
    device = next(model.parameters()).device
    documents = [[length - padding, padding] for padding in PADDING]
    return Probe(tokens.to(device), (first + positions).to(device), documents, real.to(device), is_padded=True)
