"""Attention document by document against torch's attention under an explicit mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.models.alike import planned_for
from toolkit.models.attention import Documents, document_attention, lengths_by_positions, ungrouped

POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 0], list(range(12))])


def visible(window: int | None) -> torch.Tensor:
    """[B, 1, T, T]: which token may look at which."""
    document = (POSITIONS == 0).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    behind = torch.arange(12)[:, None] - torch.arange(12)[None, :]
    allowed = (behind >= 0) & (behind < (window or 12))
    return (same & allowed)[:, None]


def test_lengths_of_documents() -> None:
    assert lengths_by_positions(POSITIONS) == [[3, 5, 2, 1, 1], [12]]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_masked_attention(window: int | None, groups: int) -> None:
    """Outputs and gradients in float64, with and without a sliding window and grouped heads."""
    torch.manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups = groups  # type: ignore[assignment]
    query = torch.randn(2, 4, 12, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 4 // groups, 12, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours, _ = document_attention(module, query, key, value, None, position_ids=POSITIONS, sliding_window=window)
    repeated = [tensor.repeat_interleave(groups, 1) for tensor in (key, value)]
    wanted = nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=visible(window)).transpose(1, 2)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(wanted)
    found = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    expected = torch.autograd.grad((wanted * weights).sum(), (query, key, value))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
def test_heads_that_are_not_grouped_on_a_gpu(window: int | None) -> None:
    """fp32 there: keys are repeated for the kernels, once, with and without a mask; numbers stay."""
    torch.manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    query = torch.randn(2, 4, 12, 8)
    key, value = torch.randn(2, 2, 2, 12, 8)
    wanted, _ = document_attention(module, query, key, value, None, position_ids=POSITIONS, sliding_window=window)
    _, more, _ = ungrouped(module, query, key, value)
    assert more.shape == query.shape
    with planned_for("cuda"):
        found, _ = document_attention(module, query, key, value, None, position_ids=POSITIONS, sliding_window=window)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("window", [None, 3])
def test_bidirectional_rows(window: int | None) -> None:
    """A module that is not causal sees its whole document, or as far to both sides as the window reaches."""
    torch.manual_seed(0)
    module = nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    query, key, value = torch.randn(3, 2, 1, 12, 8, dtype=torch.float64)
    documents = Documents(lengths_by_positions(POSITIONS))
    ours, _ = document_attention(module, query, key, value, None, document_lengths=documents, sliding_window=window)
    document = (POSITIONS == 0).cumsum(1)
    allowed = (document[:, :, None] == document[:, None, :])[:, None]
    if window is not None:
        allowed = allowed & ((torch.arange(12)[:, None] - torch.arange(12)[None, :]).abs() < window)
    wanted = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


def test_positions_of_one_row_serve_all() -> None:
    module = nn.Module()
    query = torch.randn(2, 1, 12, 8)
    once, _ = document_attention(module, query, query, query, None, position_ids=POSITIONS[:1])
    both, _ = document_attention(module, query, query, query, None, position_ids=POSITIONS[:1].expand(2, -1))
    assert torch.equal(once, both)
