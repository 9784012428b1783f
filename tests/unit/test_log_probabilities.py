"""Log-probabilities of tokens from the chunked head against torch's own linear, log_softmax and gather."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.unit.test_cross_entropy import LargestTensor, inputs, relative_error
from toolkit.models.log_probabilities import linear_log_probabilities, segment_sum


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def weights_of(targets: Tensor) -> Tensor:
    """A gradient of either sign for every token, one of them zero."""
    weights = torch.randn(len(targets), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[0] = 0.0
    return weights


@pytest.mark.parametrize("chunk_tokens", [1, 5, 26, 1000, None])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_torch_in_float64(chunk_tokens: int | None, with_bias: bool) -> None:
    hidden, weight, bias, targets = inputs(ignored=0.0)
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    given_bias = bias if with_bias else None
    found = linear_log_probabilities(hidden, weight, given_bias, targets, chunk_tokens=chunk_tokens)
    wanted = naive(hidden, weight, given_bias, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    weights = weights_of(targets)
    for ours, theirs in zip(
        torch.autograd.grad(found @ weights, leaves), torch.autograd.grad(wanted @ weights, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_float32_within_rounding() -> None:
    hidden, weight, bias, targets = inputs(tokens=200, vocabulary=999, dtype=torch.float32, ignored=0.0)
    found = linear_log_probabilities(hidden, weight, bias, targets, chunk_tokens=64)
    assert found.dtype == torch.float32 and found.shape == (200,)
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    wanted = naive(*exact, targets)
    assert relative_error(found, wanted) < 1e-6
    weights = weights_of(targets)
    gradients = torch.autograd.grad(found.double() @ weights, (hidden, weight, bias))
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted @ weights, exact), strict=True):
        assert relative_error(ours, theirs) < 1e-6


def test_bfloat16_is_no_worse_than_the_plain_path() -> None:
    hidden, weight, _, targets = inputs(tokens=256, width=64, vocabulary=2000, dtype=torch.bfloat16, ignored=0.0)
    weights = weights_of(targets)
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    expected = torch.autograd.grad(naive(exact[0], exact[1], None, targets) @ weights, exact)
    plain = torch.autograd.grad(naive(hidden, weight, None, targets).double() @ weights, (hidden, weight))
    found = linear_log_probabilities(hidden, weight, None, targets, chunk_tokens=50)
    ours = torch.autograd.grad(found.double() @ weights, (hidden, weight))
    for mine, other, exactly in zip(ours, plain, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        # Both round the logits and the result to 8 bits; 5% leaves room for the order of sums.
        assert relative_error(mine, exactly) < max(0.005, 1.05 * relative_error(other, exactly))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_pass_makes_the_whole_matrix_of_logits(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = inputs(tokens=300, vocabulary=500, dtype=dtype, ignored=0.0)
    with LargestTensor() as forward:
        found = linear_log_probabilities(hidden, weight, bias, targets, chunk_tokens=100)
    with LargestTensor() as backward:
        found.sum().backward()
    assert forward.rows(weight) == backward.rows(weight) == 100
    with LargestTensor() as plain:
        naive(hidden, weight, bias, targets).sum().backward()
    assert plain.rows(weight) == 300, "the watch must see the matrix where there is one"


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_computed(needed: tuple[bool, bool, bool]) -> None:
    *leaves, targets = inputs(ignored=0.0)
    for leaf, wanted in zip(leaves, needed, strict=True):
        leaf.requires_grad_(wanted)
    linear_log_probabilities(leaves[0], leaves[1], leaves[2], targets, chunk_tokens=10).sum().backward()
    assert tuple(leaf.grad is not None for leaf in leaves) == needed
    index = needed.index(True)
    expected = torch.autograd.grad(naive(leaves[0], leaves[1], leaves[2], targets).sum(), leaves[index])[0]
    torch.testing.assert_close(leaves[index].grad, expected, rtol=1e-10, atol=1e-10)


def test_without_tokens_zeros_flow() -> None:
    hidden, weight, bias, targets = inputs(tokens=0, dtype=torch.float32)
    linear_log_probabilities(hidden, weight, bias, targets).sum().backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape and leaf.grad.count_nonzero() == 0


def test_a_memory_trace_needs_no_values() -> None:
    with FakeTensorMode():
        hidden = torch.empty(64, 8, requires_grad=True)
        weight = torch.empty(100, 8, requires_grad=True)
        linear_log_probabilities(hidden, weight, None, torch.zeros(64, dtype=torch.int64)).sum().backward()
        assert weight.grad is not None and weight.grad.shape == (100, 8)


def test_a_target_outside_the_vocabulary_is_refused() -> None:
    hidden, weight, bias, targets = inputs(ignored=0.0)
    targets[3] = 101
    with pytest.raises(RuntimeError, match="index 101 is out of bounds"):
        linear_log_probabilities(hidden, weight, bias, targets)


def test_segments_are_summed_and_a_segment_without_tokens_is_zero() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    sums = segment_sum(values, torch.tensor([2, 0, 2, 3]), 5)
    assert sums.dtype == torch.float64 and sums.tolist() == [2.0, 0.0, 5.0, 8.0, 0.0]
    (sums @ torch.tensor([1.0, 10.0, 100.0, 1000.0, 1.0], dtype=torch.float64)).backward()
    assert values.grad is not None and values.grad.tolist() == [100.0, 1.0, 100.0, 1000.0]
