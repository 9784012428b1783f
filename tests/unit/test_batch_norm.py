"""Batch norms by themselves: with one micro-batch a step they are PyTorch's; several move the running statistics once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.engine.batch_norm import batch_norm_statistics, moving_buffers
from toolkit.engine.untrained import untrained_tensors
from toolkit.errors import ModelError


def network(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Conv2d(4, 2, 3))


def batches(count: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [3 * torch.randn(5, 3, 8, 8) + number for number in range(count)]


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_one_micro_batch_a_step_is_pytorch(momentum: float | None) -> None:
    plain = network(momentum)
    ours = copy.deepcopy(plain)
    statistics = batch_norm_statistics(ours, "micro_batch")
    assert statistics is not None
    for batch in batches(4):
        results = []
        for model in (plain, ours):
            model.zero_grad()
            output = model(batch)
            output.square().sum().backward()
            results.append((output, [parameter.grad for parameter in model.parameters()]))
        statistics.settle(None, is_applied=True)
        assert torch.equal(results[0][0], results[1][0])
        assert all(torch.equal(*pair) for pair in zip(results[0][1], results[1][1], strict=True))
    for name, value in plain.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], value, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(batches(1)[0]), plain.eval()(batches(1)[0]), rtol=1e-6, atol=1e-6)


def test_several_micro_batches_move_them_once_towards_their_mean() -> None:
    model = network(0.25)
    norm: Any = model[1]  # type: ignore[index]
    statistics = batch_norm_statistics(model, "micro_batch")
    assert statistics is not None
    seen = []
    with torch.no_grad():
        for batch in batches(3):
            values = model[0](batch).transpose(0, 1).flatten(1)  # type: ignore[index]
            seen.append((values.mean(1), values.var(1)))
    for batch in batches(3):
        model(batch).sum().backward()
    statistics.settle(None, is_applied=True)
    means, variances = (torch.stack(parts).mean(0) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(norm.running_mean, 0.25 * means)
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * variances)
    assert int(norm.num_batches_tracked) == 1


def test_what_is_not_trained_moves_nothing() -> None:
    """A pass without gradients, an evaluation, a step that overflowed, frozen statistics."""
    model = network()
    before = {name: value.clone() for name, value in model.named_buffers()}
    statistics = batch_norm_statistics(model, "micro_batch")
    assert statistics is not None
    with torch.no_grad():
        model(batches(1)[0])
    model.eval()(batches(1)[0])
    statistics.settle(None, is_applied=True)
    model.train()(batches(1)[0]).sum().backward()
    statistics.settle(None, is_applied=False)
    statistics.settle(None, is_applied=True)
    frozen = network()
    held = batch_norm_statistics(frozen, "frozen")
    assert held is not None
    output = frozen(batches(1)[0])
    assert torch.allclose(output, network().eval()(batches(1)[0]))
    output.sum().backward()
    held.settle(None, is_applied=True)
    for found in (model, frozen):
        assert all(torch.equal(value, before[name]) for name, value in found.named_buffers())


def test_statistics_stay_exact_in_a_model_of_16_bits() -> None:
    model = network()
    model[1].running_mean.fill_(0.1234567)  # type: ignore[index, union-attr, operator]
    statistics = batch_norm_statistics(model, "micro_batch")
    assert statistics is not None
    model.bfloat16()
    statistics.keep_exact()
    norm: Any = model[1]  # type: ignore[index]
    assert norm.running_mean.dtype == torch.float32 and float(norm.running_mean[0]) == pytest.approx(
        0.1234567, abs=1e-7
    )
    assert model(batches(1)[0].bfloat16()).dtype == torch.bfloat16


def test_one_value_has_no_variance() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    assert batch_norm_statistics(model, "micro_batch") is not None
    with pytest.raises(ModelError, match="batch norm of 0: a micro-batch gives it one value per channel"):
        model(torch.zeros(1, 3))


def test_they_belong_to_what_is_trained() -> None:
    model = network()
    model.register_buffer("fixed", torch.ones(2))
    assert moving_buffers(model) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(untrained_tensors(model)) == {"fixed"}
    assert batch_norm_statistics(nn.Sequential(nn.Linear(2, 2)), "micro_batch") is None
