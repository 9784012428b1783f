"""Packing: attention stays inside each document, by measurement, or the model is refused."""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from tests import flash, varlen
from toolkit.data.example import Example
from toolkit.errors import ModelError
from toolkit.models.attention import DOCUMENT_LENGTHS, DOCUMENTS, Documents
from toolkit.models.isolation import check_isolation, leak
from toolkit.parity.reference import token_losses
from toolkit.recipe import CausalLM
from toolkit.tasks.language.causal_lm import CausalLMTask

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
LLAMA_LIKE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}


CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**LLAMA_LIKE),
    "qwen3": Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "mistral": MistralConfig(**LLAMA_LIKE, sliding_window=4),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64),
}


def build(kind: str, attention: str) -> Any:
    """A tiny model in fp64, without dropout."""
    torch.manual_seed(0)
    start = attention if attention in ("sdpa", "eager") else "sdpa"
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=start)
    if attention == "flash_attention_2":
        flash.use(model)
    elif attention != start:
        model.set_attn_implementation(attention)
    # In fp32 transformers looks for a Linear in each attention before it calls flash, and GPT-2 has none.
    return model.double().eval()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2", DOCUMENTS, varlen.NEWEST])
def test_documents_do_not_see_each_other(kind: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows with bounds at different places, in every implementation of attention."""
    flash.install(monkeypatch)
    with torch.no_grad():
        assert leak(build(kind, attention)) < 1e-12


def test_a_model_that_takes_no_positions_is_told_so() -> None:
    """No measurement, and no attention to choose: BLOOM has eager only."""
    model = AutoModelForCausalLM.from_config(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64))
    with pytest.raises(ModelError) as refused:
        check_isolation(leak(model), "BloomForCausalLM")
    assert refused.value.what.startswith("data.packing=True: BloomForCausalLM takes no positions")
    assert "%" not in refused.value.what and refused.value.do == "set data.packing=False for this model"


def packed_batch() -> dict[str, torch.Tensor]:
    """Three rows of packed examples of different lengths, as the task collates them; the last two are filled up."""
    generator = np.random.default_rng(0)

    def example(length: int) -> Example:
        tokens = generator.integers(3, 64, length).astype(np.int32)
        return {"input_ids": tokens, "labels": tokens}

    task = CausalLMTask(CausalLM(), Tokenizer())  # type: ignore[arg-type]
    return task.collate([[example(length) for length in row] for row in ((7, 1, 8), (4, 9), (11,))])


class Tokenizer:
    """What collate reads of one."""

    pad_token_id = 0


def loss_and_gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Of the task's own loss."""
    task = CausalLMTask(CausalLM(), Tokenizer())  # type: ignore[arg-type]
    model.zero_grad()
    loss = task.loss(model, batch, 1.0).trained
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_attention_trains_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of three packed rows in flash attention, document by document and in one call of the
    variable-length kernel are those of an eager mask."""
    flash.install(monkeypatch)
    batch = packed_batch()
    assert batch[DOCUMENT_LENGTHS].tolist() == [[7, 1, 8], [4, 9, 3], [11, 5, 0]]
    wanted, gradients = loss_and_gradients(build(kind, "eager"), batch)
    assert wanted == pytest.approx(float(token_losses(build(kind, "eager"), batch).detach()), rel=1e-7)
    for attention in ("flash_attention_2", DOCUMENTS, varlen.NEWEST):
        found, others = loss_and_gradients(build(kind, attention), batch)
        assert found == pytest.approx(wanted, rel=1e-7), attention
        assert float((others - gradients).norm() / gradients.norm()) < 1e-6, attention


@pytest.mark.parametrize("rows", [1, 3])
def test_parts_of_a_sequence_keep_the_whole_documents(rows: int) -> None:
    """Cut for two ranks, the lengths stay those of the row; what is filled up is a document of its own."""
    task = CausalLMTask(CausalLM(), Tokenizer())  # type: ignore[arg-type]
    batch = {name: values[:rows] for name, values in packed_batch().items()}
    parts = [task.split(batch, index, 3) for index in range(3)]
    assert [part["input_ids"].shape for part in parts] == [(rows, 6)] * 3
    for part in parts:
        assert part[DOCUMENT_LENGTHS].tolist() == [[7, 1, 8, 2], [4, 9, 3, 2], [11, 5, 0, 2]][:rows]


def test_flash_attention_without_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks for documents in the positions of one row only: two rows then see across their bounds."""
    flash.install(monkeypatch)
    monkeypatch.setattr("toolkit.models.attention.takes_options", lambda _: False)
    with torch.no_grad():
        moved = leak(build("llama", "flash_attention_2"))
    assert moved > 0.01
    with pytest.raises(ModelError) as caught:
        check_isolation(moved, "LlamaForCausalLM")
    assert "model.attention='sdpa'" in caught.value.do


@pytest.mark.parametrize("attention", [DOCUMENTS, varlen.NEWEST])
def test_bounds_of_another_row_are_found_out(attention: str) -> None:
    """Documents that are cut too short leak nothing: only the row by itself shows it."""
    model = build("llama", attention)
    inner = model.base_model.forward

    @wraps(inner)
    def with_bounds_of_the_first_row(*args: Any, **kwargs: Any) -> Any:
        rows = kwargs[DOCUMENT_LENGTHS].rows
        return inner(*args, **{**kwargs, DOCUMENT_LENGTHS: Documents([[1, 1, 1, 3, 2, 4], *rows[1:]])})

    model.base_model.forward = with_bounds_of_the_first_row
    with torch.no_grad():
        assert leak(model) > 0.01


def test_a_leaking_architecture_is_refused() -> None:
    """A model that ignores positions sees the document before."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_LIKE)).eval()
    inner = model.base_model.forward

    @wraps(inner)
    def without_positions(*args: object, **kwargs: object) -> object:
        kwargs.pop("position_ids", None)
        return inner(*args, **kwargs)

    model.base_model.forward = without_positions
    with torch.no_grad():
        moved = leak(model)
    assert moved > 0.01
    with pytest.raises(ModelError, match=r"data.packing=True: LlamaForCausalLM lets a document see another one"):
        check_isolation(moved, type(model).__name__)
