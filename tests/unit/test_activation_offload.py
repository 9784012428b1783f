"""Layer inputs kept in host memory: the same numbers, nothing but those inputs moved, and no input left on the device."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.architectures import LAYERS, VOCABULARY, tiny_config
from toolkit.models.activation_offload import IN_FLIGHT, ActivationOffload
from toolkit.models.compile import compile_layers

LENGTHS = (13, 13, 29, 7)
"""Tokens of the batches of two rows: memory on the host fits, is too small, is too large."""


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model  # type: ignore[no-any-return]


def loss(model: nn.Module, length: int) -> torch.Tensor:
    tokens = (torch.arange(2 * length).view(2, length) * 7 + 1) % VOCABULARY
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.logsumexp(-1).sum()


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mixtral", "bloom"])
def test_the_same_numbers_from_layer_inputs_alone(kind: str) -> None:
    """Two steps after each other and two passes in flight at once, as in a pipeline: gradients are equal, bit for bit."""
    plain = build(kind)
    model = copy.deepcopy(plain)
    offload = ActivationOffload(torch.device("cpu"))
    offload.use_in(model)
    for length in LENGTHS:
        for one in (plain, model):
            loss(one, length).backward()
    for one in (plain, model):
        first, second = loss(one, 11), loss(one, 17)
        first.backward()
        second.backward()
    for found, wanted in zip(gradients(model), gradients(plain), strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)
    lengths = (*LENGTHS, 11, 17)
    assert offload.tensors == len(lengths) * LAYERS
    assert offload.bytes == sum(lengths) * LAYERS * 2 * 32 * 4


def test_inputs_leave_the_device_and_their_memory_serves_again() -> None:
    """After a forward pass only the last inputs are there; two steps of one shape share their host memory."""
    model = build("llama")
    offload = ActivationOffload(torch.device("cpu"))
    offload.use_in(model)
    inputs: list[weakref.ref[torch.Tensor]] = []
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    memory = set()
    for _ in range(2):
        inputs.clear()
        value = loss(model, 13)
        gc.collect()
        # The last ones may have been handed out again as they are, so their host copies do not count here.
        assert [known() is None for known in inputs] == [True] * (LAYERS - IN_FLIGHT) + [False] * IN_FLIGHT
        value.backward()
        del value
        gc.collect()
        assert len(offload._free) == LAYERS
        memory |= {flat.data_ptr() for flat in offload._free}
    assert len(memory) == LAYERS


def test_host_copies_are_what_the_backward_pass_uses() -> None:
    """Changed on the host between the passes, they change the gradient."""
    model = build("llama")
    offload = ActivationOffload(torch.device("cpu"))
    offload.use_in(model)
    loss(model, 13).backward()
    wanted = [grad.clone() for grad in gradients(model) if grad is not None]
    model.zero_grad()
    value = loss(model, 13)
    kept = offload._kept[0]()
    assert kept is not None
    kept.host.add_(1.0)
    value.backward()
    found = [grad for grad in gradients(model) if grad is not None]
    assert not all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_by_keyword_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer called with hidden_states=..., and compiled layers inside: the same gradients, all inputs moved."""
    torch._dynamo.reset()
    monkeypatch.setattr("toolkit.models.compile.BACKEND", "eager")
    plain = build("llama")
    model = copy.deepcopy(plain)
    offload = ActivationOffload(torch.device("cpu"))
    offload.use_in(model)
    for layer in model.base_model.layers:  # type: ignore[union-attr]
        forward = layer.forward
        layer.forward = lambda hidden, forward=forward, **options: forward(hidden_states=hidden, **options)
    compile_layers(model)
    for one in (plain, model):
        loss(one, 13).backward()
    for found, wanted in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert offload.tensors == LAYERS
