"""Compiled layers in one process: code is made once for batches of every shape, and the code generator agrees."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.architectures import LAYERS, VOCABULARY, tiny_config
from toolkit.errors import LaunchError, ModelError
from toolkit.models import compile as compilation
from toolkit.models.attention import DOCUMENT_LENGTHS, DOCUMENTS, lengths_tensor, tell_documents

BATCHES = (
    [[6, 6], [3, 9]],
    [[5, 6, 9], [20]],
    [[4, 3], [5, 2]],
    [[31, 9], [10, 30], [13, 13, 14]],
    [[2, 2, 2, 2, 2, 3], [13]],
    [[64], [40, 24], [1, 63], [17, 47]],
)
"""Tokens per document of the rows of packed batches: other numbers of rows, tokens and documents in each."""


def build(kind: str, attention: str = DOCUMENTS, *, recompute: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32).train()
    model.set_attn_implementation(attention)
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model  # type: ignore[no-any-return]


def gradients(model: nn.Module, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Of a sum over the logits of `rows` of documents; the loss itself under "loss"."""
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    tokens = (torch.arange(positions.numel()).view_as(positions) * 7 + 1) % VOCABULARY
    inputs = {"input_ids": tokens, "position_ids": positions, DOCUMENT_LENGTHS: lengths_tensor(rows)}
    loss = model(**tell_documents(model, inputs), use_cache=False).logits.logsumexp(-1).sum()
    model.zero_grad()
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    # Python's max passes over NaN, torch's does not.
    return float(torch.stack([(found[name] - g).norm() / (g.norm() + 1e-3) for name, g in wanted.items()]).max())


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", "eager")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attention", [DOCUMENTS, "sdpa"])
def test_no_compilation_after_the_first_batch(attention: str, recompute: bool) -> None:
    """Other numbers of documents, rows and tokens in every batch, and all layers alike: what the first batch made serves."""
    plain = build("llama", attention, recompute=recompute)
    model = copy.deepcopy(plain)
    compilation.compile_layers(model)
    made = []
    for rows in BATCHES:
        assert difference(gradients(model, rows), gradients(plain, rows)) < 1e-5
        made.append(compilation.count_compiled())
    assert made == made[:1] * len(BATCHES)
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(9)[None], use_cache=False)
    assert compilation.count_compiled() == made[0], "evaluation is not compiled for"


def test_generated_code_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own code generator, with layers computed twice: within 1e-5 of the layers as they are, relative."""
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    plain = build("llama", "sdpa", recompute=True)
    model = copy.deepcopy(plain)
    compilation.compile_layers(model)
    for rows in BATCHES[:2]:
        assert difference(gradients(model, rows), gradients(plain, rows)) < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mixtral", "qwen3"])
def test_other_layers(kind: str) -> None:
    """Learned positions, windows and soft caps, experts, norms of heads."""
    plain = build(kind, "eager", recompute=True)
    model = copy.deepcopy(plain)
    compilation.compile_layers(model)
    before = compilation.count_compiled()
    for rows in BATCHES[:2]:
        assert difference(gradients(model, rows), gradients(plain, rows)) < 1e-5
    assert compilation.count_compiled() > before


def test_weights_are_not_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed after the forward pass and put elsewhere before the backward pass, as by ZeRO-3: the old memory is not looked at."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    plain = build("llama", "sdpa")
    model = copy.deepcopy(plain)
    compilation.compile_layers(model)
    layers: Any = model.base_model.layers  # type: ignore[union-attr]
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    tokens = torch.arange(24).view(2, 12)
    plain(input_ids=tokens, use_cache=False).logits.logsumexp(-1).sum().backward()
    loss = model(input_ids=tokens, use_cache=False).logits.logsumexp(-1).sum()
    copies = [weight.data.clone() for weight in weights]
    for weight in weights:
        # Whoever still looked at the old memory would find this.
        weight.data.fill_(torch.nan)
        weight.data = torch.empty(0)
    for weight, saved in zip(weights, copies, strict=True):
        weight.data = torch.cat([torch.zeros(3), saved.flatten()])[3:].view(saved.shape)
    loss.backward()
    assert len(weights) == 9 * LAYERS
    wanted, found = ({name: p.grad for name, p in one.named_parameters()} for one in (plain, model))
    assert difference(found, wanted) < 1e-5  # type: ignore[arg-type]


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.compile=True: Linear has no layers"):
        compilation.compile_layers(nn.Linear(2, 2))


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compilation.check_compiler("cpu")
    with monkeypatch.context() as switched_off:
        switched_off.setenv("TORCHDYNAMO_DISABLE", "1")
        with pytest.raises(LaunchError, match="TORCHDYNAMO_DISABLE=1"):
            compilation.check_compiler("cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(LaunchError) as caught:
        compilation.check_compiler("cpu")
    assert caught.value.what == "model.compile=True on cpu: there is no g++ or clang++ on PATH"
    assert caught.value.do.endswith("or set model.compile=False")
    monkeypatch.setenv("CC", "nowhere-cc")
    with pytest.raises(LaunchError, match="no nowhere-cc on PATH"):
        compilation.check_compiler("cuda")
