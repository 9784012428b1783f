"""Where a restored optimizer keeps its step: where torch's own load_state_dict puts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toolkit.engine.fragments import _native_scalars


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_as_torch_does(options: dict[str, bool], place: str) -> None:
    """A fused kernel reads the step beside the weight. The meta device stands for one that is not the CPU."""
    parameter = torch.nn.Parameter(torch.zeros(3, device=place))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    # As an option of the constructor torch asks for a device that has the kernel.
    optimizer.param_groups[0].update(options)
    (found,) = _native_scalars(optimizer, {"step": 7.0}, parameter.device).values()
    saved: dict[str, Any] = optimizer.state_dict()
    saved["state"] = {0: {"step": torch.tensor(7.0), **{key: torch.zeros(3) for key in ("exp_avg", "exp_avg_sq")}}}
    optimizer.load_state_dict(saved)
    wanted = optimizer.state[parameter]["step"]
    assert (found.device, found.dtype, found.shape) == (wanted.device, wanted.dtype, wanted.shape)
    assert found.device.type == (place if options else "cpu")


def test_a_fused_step_goes_on() -> None:
    """The CPU's fused AdamW, restored, updates as if it had never stopped."""

    def step(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> None:
        parameter.grad = torch.full((3,), 0.5)
        optimizer.step()

    straight = torch.nn.Parameter(torch.ones(3))
    one = torch.optim.AdamW([straight], lr=0.1, fused=True)
    step(one, straight)
    resumed = torch.nn.Parameter(straight.detach().clone())
    two = torch.optim.AdamW([resumed], lr=0.1, fused=True)
    old = one.state[straight]
    tensors = {key: old[key].clone() for key in ("exp_avg", "exp_avg_sq")}
    two.state[resumed] = tensors | _native_scalars(two, {"step": float(old["step"])}, resumed.device)
    step(one, straight)
    step(two, resumed)
    assert torch.equal(straight, resumed)
