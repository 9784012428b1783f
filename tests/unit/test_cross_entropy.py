"""The chunked loss head against torch's own linear and cross_entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.models.cross_entropy import linear_cross_entropy


def inputs(
    tokens: int = 37, width: int = 16, vocabulary: int = 101, dtype: torch.dtype = torch.float64, ignored: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias that require gradients, and targets of which a share is ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = -100
    return hidden, weight, bias, targets


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)


def relative_error(value: Tensor, reference: Tensor) -> float:
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("chunk_tokens", [1, 5, 26, 1000, None])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_value_and_gradients_equal_torch_in_float64(
    chunk_tokens: int | None, label_smoothing: float, with_bias: bool, ignored: float
) -> None:
    hidden, weight, bias, targets = inputs(ignored=ignored)
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    given_bias = bias if with_bias else None
    loss = linear_cross_entropy(
        hidden,
        weight,
        given_bias,
        targets,
        label_smoothing=label_smoothing,
        gradient_scale=8.0,
        chunk_tokens=chunk_tokens,
    )
    reference = naive(hidden, weight, given_bias, targets, label_smoothing)
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=0.0)
    # 3.7 differs from the scale given: the backward pass has to correct it.
    for ours, theirs in zip(
        torch.autograd.grad(loss * 3.7, leaves), torch.autograd.grad(reference * 3.7, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_float32_within_rounding() -> None:
    hidden, weight, bias, targets = inputs(tokens=200, vocabulary=999, dtype=torch.float32)
    loss = linear_cross_entropy(hidden, weight, bias, targets, chunk_tokens=64)
    assert loss.dtype == torch.float32 and loss.shape == ()
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    reference = naive(*exact, targets)
    assert relative_error(loss, reference) < 1e-6
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    for ours, theirs in zip(gradients, torch.autograd.grad(reference, exact), strict=True):
        assert relative_error(ours, theirs) < 1e-6


def test_bfloat16_is_no_worse_than_the_plain_path() -> None:
    hidden, weight, _, targets = inputs(tokens=256, width=64, vocabulary=2000, dtype=torch.bfloat16)
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    reference = naive(exact[0], exact[1], None, targets)
    expected = torch.autograd.grad(reference, exact)
    plain_loss = naive(hidden, weight, None, targets)
    loss = linear_cross_entropy(hidden, weight, None, targets, chunk_tokens=50)
    assert loss.dtype == torch.float32
    assert relative_error(loss, reference) < 1e-3
    plain = torch.autograd.grad(plain_loss, (hidden, weight))
    ours = torch.autograd.grad(loss, (hidden, weight))
    for mine, other, exactly in zip(ours, plain, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        # Both round the logits and the result to 8 bits; 5% leaves room for the order of sums.
        assert relative_error(mine, exactly) < max(0.005, 1.05 * relative_error(other, exactly))


def test_the_scale_keeps_small_fp16_gradients() -> None:
    # Probability 2e-5 times hidden 1e-4 is 2e-9, below half of fp16's smallest number 2**-24: unscaled it becomes zero.
    vocabulary = 50_000
    hidden = (1e-4 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))).half().requires_grad_()
    weight = torch.full((vocabulary, 8), 1e-2, dtype=torch.float16, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3])
    scale = 2.0**16
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    expected = torch.autograd.grad(naive(exact[0], exact[1], None, targets) * scale, exact)[1]
    gradients = {}
    for given in (1.0, scale):
        loss = linear_cross_entropy(hidden, weight, None, targets, gradient_scale=given)
        gradients[given] = torch.autograd.grad(loss * scale, weight)[0]
    rest = slice(4, None)
    assert gradients[1.0][rest].count_nonzero() == 0
    assert relative_error(gradients[scale][rest], expected[rest]) < 5e-3


def test_a_promise_that_is_not_kept_costs_nothing_where_the_factor_can_be_read() -> None:
    """On a CPU any factor is applied; on a GPU, which would have to wait for it, another one is an error."""
    hidden, weight, _, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, None, targets, gradient_scale=8.0, is_promised=True)
    expected = torch.autograd.grad(naive(hidden, weight, None, targets) * 3.7, (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(loss * 3.7, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_factor_beyond_fp16_is_applied_in_fp32() -> None:
    hidden, weight, _, targets = inputs(dtype=torch.float16)
    loss = linear_cross_entropy(hidden, weight, None, targets, gradient_scale=2.0**-3)
    gradients = torch.autograd.grad(loss * 2.0**-20, (hidden, weight))
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    for ours, theirs in zip(
        gradients, torch.autograd.grad(naive(exact[0], exact[1], None, targets) * 2.0**-20, exact), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=2.0**-24)
        assert ours.count_nonzero() > 0


def test_ignored_rows_have_zero_gradient_and_cost_nothing() -> None:
    hidden, weight, bias, targets = inputs()
    poisoned = hidden.detach().clone()
    poisoned[targets == -100] = float("nan")
    poisoned.requires_grad_()
    linear_cross_entropy(poisoned, weight, bias, targets, chunk_tokens=7).backward()
    assert poisoned.grad is not None and weight.grad is not None
    assert poisoned.grad.isfinite().all() and weight.grad.isfinite().all()
    assert poisoned.grad[targets == -100].count_nonzero() == 0
    with LargestTensor() as watch:
        linear_cross_entropy(hidden, weight, bias, targets, chunk_tokens=1000)
    assert watch.rows(weight) == int((targets != -100).sum())


@pytest.mark.parametrize("tokens", [0, 5])
def test_without_a_valid_target_zeros_flow(tokens: int) -> None:
    hidden, weight, bias, targets = inputs(tokens=tokens, dtype=torch.float32, ignored=2.0)
    assert (targets == -100).all()
    loss = linear_cross_entropy(hidden, weight, bias, targets)
    assert loss.item() == 0.0 and loss.dtype == torch.float32
    loss.backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape and leaf.grad.count_nonzero() == 0


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_computed(needed: tuple[bool, bool, bool]) -> None:
    leaves = inputs()[:3]
    targets = inputs()[3]
    for leaf, wanted in zip(leaves, needed, strict=True):
        leaf.requires_grad_(wanted)
    linear_cross_entropy(*leaves, targets, chunk_tokens=10).backward()
    assert tuple(leaf.grad is not None for leaf in leaves) == needed
    index = needed.index(True)
    expected = torch.autograd.grad(naive(*leaves, targets), leaves[index])[0]
    torch.testing.assert_close(leaves[index].grad, expected, rtol=1e-10, atol=1e-10)


def test_no_grad_computes_the_value_only() -> None:
    hidden, weight, bias, targets = inputs()
    with torch.no_grad(), LargestTensor() as watch:
        loss = linear_cross_entropy(hidden, weight, bias, targets, chunk_tokens=4)
    assert not loss.requires_grad
    assert not watch.saw_shape(tuple(weight.shape)), "a weight gradient was allocated"
    torch.testing.assert_close(loss, naive(hidden, weight, bias, targets).detach(), rtol=1e-10, atol=0.0)


def test_weight_storage_may_be_freed_after_forward() -> None:
    hidden, weight, _, targets = inputs()
    expected = torch.autograd.grad(naive(hidden, weight, None, targets), (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, None, targets)
    weight.untyped_storage().resize_(0)
    for ours, theirs in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_matrix_of_logits_never_exists(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = inputs(tokens=300, vocabulary=500, dtype=dtype, ignored=0.0)
    with LargestTensor() as watch:
        linear_cross_entropy(hidden, weight, bias, targets, label_smoothing=0.1, chunk_tokens=100).backward()
    assert watch.rows(weight) == 100
    with LargestTensor() as plain:
        naive(hidden, weight, bias, targets, 0.1).backward()
    assert plain.rows(weight) == 300, "the watch must see the matrix where there is one"


def test_the_default_chunk_is_bounded() -> None:
    hidden, weight, _, targets = inputs(tokens=1200, width=2, vocabulary=49_152, dtype=torch.float32, ignored=0.0)
    with LargestTensor() as watch:
        linear_cross_entropy(hidden.detach(), weight.detach(), None, targets)
    # 128 MiB of fp32 logits hold 682 tokens; two equal chunks of 1200 hold 600 each.
    assert watch.rows(weight) == 600


def test_autocast_decides_the_format_as_for_linear() -> None:
    hidden, weight, bias, targets = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, bias, targets)
        reference = naive(hidden, weight, bias, targets)
    assert relative_error(loss, reference) < 2e-3
    for ours, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight, bias)),
        torch.autograd.grad(reference, (hidden, weight, bias)),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 1e-2


def test_a_memory_trace_needs_no_values() -> None:
    with FakeTensorMode():
        hidden = torch.empty(64, 8, requires_grad=True)
        weight = torch.empty(100, 8, requires_grad=True)
        linear_cross_entropy(hidden, weight, None, torch.zeros(64, dtype=torch.int64)).backward()
        assert weight.grad is not None and weight.grad.shape == (100, 8)


def test_a_second_backward_is_refused() -> None:
    hidden, weight, _, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, None, targets) * 2.0
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("setting", [{"label_smoothing": 1.0}, {"gradient_scale": 0.0}, {"gradient_scale": 1e400}])
def test_settings_without_meaning_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=.* must be in \[0, 1\), gradient_scale=.* finite"):
        linear_cross_entropy(*inputs(), **setting)


def test_a_target_outside_the_vocabulary_is_refused() -> None:
    hidden, weight, bias, targets = inputs()
    targets[3] = 101
    with pytest.raises(RuntimeError, match="index 101 is out of bounds"):
        linear_cross_entropy(hidden, weight, bias, targets)


class LargestTensor(TorchDispatchMode):
    """Records the shapes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.shapes.add(tuple(value.shape))
        return result

    def rows(self, weight: Tensor) -> int:
        """Most rows of any tensor as wide as the vocabulary."""
        return max(shape[0] for shape in self.shapes if shape[1:] == weight.shape[:1])

    def saw_shape(self, shape: tuple[int, ...]) -> bool:
        return shape in self.shapes
