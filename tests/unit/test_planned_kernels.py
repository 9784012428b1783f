"""Functions that stand for liger's kernels in a plan: they keep what the kernels keep, and no more."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.plan.live_bytes import LiveBytes
from toolkit.plan.planned_kernels import PlannedGate, PlannedNorm, PlannedRotation, planned_kernels

ROWS, WIDTH = 64, 256


@contextmanager
def counted(*known: Tensor) -> Iterator[LiveBytes]:
    """Counts the bytes of tensors that are made inside."""
    live = LiveBytes()
    live.add(list(known))
    live.begin_peak()
    with live:
        yield live


def test_norm_keeps_a_number_per_row() -> None:
    """bf16: its output, and 4 bytes of each row; the gradient of its input lies where that of its output was."""
    x = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    weight = nn.Parameter(torch.ones(WIDTH, dtype=torch.bfloat16))
    with counted(x, weight) as live:
        before = live.now
        y = PlannedNorm.apply(x, weight, 1e-6, 0.0, "llama", True, None)
        assert live.now - before == 2 * ROWS * WIDTH + 4 * ROWS
        grad = torch.ones_like(y)
        held = live.now
        (found,) = torch.autograd.grad(y, (x,), grad)
        assert found.data_ptr() == grad.data_ptr()
        assert live.now <= held + 2 * WIDTH


def test_gate_keeps_its_inputs() -> None:
    """Nothing but the product is made, forward and backward."""
    a, b = (torch.randn(ROWS, WIDTH, requires_grad=True) for _ in range(2))
    with counted(a, b) as live:
        before = live.now
        product = PlannedGate.apply(a, b)
        assert live.now - before == 4 * ROWS * WIDTH
        first, second = torch.autograd.grad(product, (a, b), torch.ones_like(product))
    assert (first.data_ptr(), second.data_ptr()) == (a.data_ptr(), b.data_ptr())


def test_rotation_makes_nothing() -> None:
    query, key = (torch.randn(1, heads, ROWS, 8, requires_grad=True) for heads in (4, 2))
    cos, sin = (torch.randn(1, ROWS, 8) for _ in range(2))
    with counted(query, key, cos, sin) as live:
        before = live.now
        rotated: Any = PlannedRotation.apply(query * 1.0, key * 1.0, cos, sin)
        assert live.now - before == 4 * (query.numel() + key.numel())
        assert [tensor.shape for tensor in rotated] == [query.shape, key.shape]


def test_they_take_the_kernels_places_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only while a trace goes on."""
    names = {
        "rms_norm": "LigerRMSNormFunction",
        "swiglu": "LigerSiLUMulFunction",
        "geglu": "LigerGELUMulFunction",
        "rope": "dispatch",
    }
    for module, attribute in names.items():
        made = types.ModuleType(module)
        setattr(made, attribute, module)
        monkeypatch.setitem(sys.modules, f"liger_kernel.transformers.{module}", made)
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", types.ModuleType("liger_kernel.transformers"))

    def found() -> list[Any]:
        return [getattr(sys.modules[f"liger_kernel.transformers.{module}"], name) for module, name in names.items()]

    with planned_kernels():
        assert found()[:3] == [PlannedNorm, PlannedGate, PlannedGate] and callable(found()[3])
    assert found() == list(names)
