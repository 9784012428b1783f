"""Adam with 8-bit states on parameters of any length, beside torch's AdamW and torchao's own step."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'toolkit[torchao]'")

from toolkit.engine import adam8bit
from toolkit.engine.adam8bit import BLOCK, MOMENTS, Adam8bit, read_moment, write_moment
from toolkit.errors import LaunchError

LENGTH = 40 * BLOCK + 77
STEPS = 8
HYPER: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def gradients() -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(LENGTH, generator=source) * 1e-3 for _ in range(STEPS)]


def start() -> torch.Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(1))


def trained(length: int = LENGTH, *, decoupled: bool = True) -> tuple[torch.nn.Parameter, Adam8bit]:
    weight = torch.nn.Parameter(start()[:length].clone())
    optimizer = Adam8bit([{"params": [weight]}], decoupled=decoupled, **HYPER)
    for gradient in gradients():
        weight.grad = gradient[:length].clone()
        optimizer.step()
    return weight, optimizer


def torch_trained(kind: type[torch.optim.Optimizer], length: int) -> torch.Tensor:
    weight = torch.nn.Parameter(start()[:length].clone())
    optimizer = kind([weight], **HYPER)
    for gradient in gradients():
        weight.grad = gradient[:length].clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("decoupled", [True, False])
def test_small_parameters_are_plain_adam(decoupled: bool) -> None:
    """Below SMALLEST nothing is quantised, and the update is torch's."""
    length = adam8bit.SMALLEST - 1
    weight, _ = trained(length, decoupled=decoupled)
    expected = torch_trained(torch.optim.AdamW if decoupled else torch.optim.Adam, length)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)


def test_no_farther_from_adamw_than_torchao() -> None:
    """torchao's own step on the same numbers, filled up to whole blocks, errs as much."""
    from torchao.optim.adam import single_param_adam
    from torchao.optim.subclass_8bit import OptimState8bit

    expected = torch_trained(torch.optim.AdamW, LENGTH)
    rest = -LENGTH % BLOCK
    weight = torch.nn.functional.pad(start(), (0, rest))
    first, second = (OptimState8bit.zeros((LENGTH + rest,), signed, BLOCK) for signed in (True, False))
    for index, gradient in enumerate(gradients()):
        filled = torch.nn.functional.pad(gradient, (0, rest))
        step, rate = torch.tensor(index + 1.0), torch.tensor(HYPER["lr"])
        single_param_adam(weight, filled, step, first, second, None, rate, *HYPER["betas"], 0.1, 1e-8, True, False)
    theirs = (weight[:LENGTH] - expected).norm()
    ours = (trained()[0].detach() - expected).norm()
    assert 0 < ours < 1.1 * theirs


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained()
    monkeypatch.setattr(adam8bit, "PIECE", 7 * BLOCK)
    assert torch.equal(trained()[0], whole)


def test_numbers_read_and_stored_again_stay() -> None:
    """Also parameter by parameter, whose ends lie within blocks: a resume continues exactly."""
    _, optimizer = trained()
    (state,) = optimizer.state.values()
    assert state["step"] == STEPS
    for name in MOMENTS:
        moment = state[name]
        before, codes = read_moment(moment, 0, LENGTH).clone(), moment.codes.clone()
        fresh = adam8bit.new_moment(torch.empty(LENGTH), name)
        assert not read_moment(fresh, 0, LENGTH).any()
        cuts = [0, 300, 310, 512, 1024, 5300, LENGTH]
        write_moment(fresh, [(start, before[start:end]) for start, end in itertools.pairwise(cuts)])
        assert torch.equal(fresh.codes, codes)
        assert torch.equal(read_moment(fresh, 0, LENGTH), before)


def test_without_torchao_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(LaunchError, match="needs the package torchao") as caught:
        trained(8)
    assert caught.value.do == "run pip install 'toolkit[torchao]'"


def test_gaps_between_parts_are_zeros() -> None:
    moment = adam8bit.new_moment(torch.empty(LENGTH), "exp_avg")
    ones = torch.ones(LENGTH)
    write_moment(moment, [(0, ones[:300]), (2000, ones[:100])])
    found = read_moment(moment, 0, LENGTH)
    assert found.sum() == 400 and found[:300].all() and found[2000:2100].all()


def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, as one graph per length of a piece, whatever the step: the numbers are those of the loop."""
    from torch._dynamo.utils import counters

    plain, _ = trained()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(adam8bit._adam, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(adam8bit, "_update_piece", lambda _: compiled)
    assert torch.equal(trained()[0], plain)
    assert counters["stats"]["unique_graphs"] == 1
