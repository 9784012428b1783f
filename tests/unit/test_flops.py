"""Model FLOPs: the trace against closed forms, against what torch counts in a real step, and pairs against masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    OlmoeConfig,
    PretrainedConfig,
)

from toolkit.models.adapter_plan import plan_adapters
from toolkit.models.adapters import add_adapters, fill_adapters
from toolkit.models.flops import ModelFlops, Pairs, Uncountable, count_model_flops
from toolkit.recipe import LoRA

SIZES: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def count(config: PretrainedConfig, *, length: int = 128) -> ModelFlops:
    return count_model_flops(AutoModelForCausalLM, config, length, is_causal=True)


def test_a_llama_by_its_closed_form() -> None:
    # PaLM, appendix B, with grouped heads: 2 FLOPs per weight of a product and token; 4 x width per layer and pair.
    hidden, mlp, layers, vocabulary, keys = 64, 96, 3, 640, 2 * 16
    flops = count(LlamaConfig(**SIZES, num_key_value_heads=2))
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * mlp)
    assert flops == ModelFlops(2 * weights, {Pairs(is_causal=True): layers * 4 * hidden}, 2 * hidden * vocabulary)
    # Two documents in one sequence are two triangles.
    lengths, targets = np.array([30, 70]), 55
    pairs = 30 * 31 // 2 + 70 * 71 // 2
    expected = 3 * (2 * weights * 100 + layers * 4 * hidden * pairs + 2 * hidden * vocabulary * targets)
    assert flops.of_step(lengths, targets) == expected


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    """By torch's count of a real step: all but the first layer's inputs, which nobody wants the gradient of."""
    config = BertConfig(**SIZES, num_labels=3)
    tuning = LoRA(rank=4, target_modules=("query", "key", "value", "intermediate.dense"))
    plan = plan_adapters(AutoModelForSequenceClassification, config, tuning, trains_head=False)
    plain = count_model_flops(AutoModelForSequenceClassification, config, 128, is_causal=False)
    flops = replace(plain, adapters=plan.adapters)
    config._attn_implementation = "eager"
    model = AutoModelForSequenceClassification.from_config(config).train()
    add_adapters(model, plan)
    fill_adapters(model, plan, 0)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones((1, 40), dtype=torch.int64)).logits.sum().backward()
    # Query, key and value of the first layer, and A beside each.
    unasked = 40 * 3 * (2 * 64 * 64 + 2 * 4 * 64)
    assert flops.of_step(np.array([40]), targets=1) - counter.get_total_flops() == unasked


def test_of_a_mixture_the_experts_that_a_token_is_sent_to_are_counted() -> None:
    hidden, mlp, layers, experts, chosen = 64, 96, 3, 8, 2
    flops = count(
        OlmoeConfig(**SIZES, num_key_value_heads=4, num_experts=experts, num_experts_per_tok=chosen, **SPECIAL)
    )
    weights = layers * (4 * hidden * hidden + hidden * experts + chosen * 3 * hidden * mlp)
    assert flops.per_token == 2 * weights


def test_the_layers_of_a_window_are_counted_apart() -> None:
    flops = count(MistralConfig(**SIZES, num_key_value_heads=4, sliding_window=16))
    assert flops.per_pair == {Pairs(is_causal=True, window=16): 3 * 4 * 64}


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 12])
def test_pairs_are_the_ones_of_a_mask(is_causal: bool, window: int | None) -> None:
    lengths = np.array([1, 4, 5, 6, 23], dtype=np.int32)
    expected = 0
    for length in lengths:
        apart = np.arange(length)[:, None] - np.arange(length)[None, :]
        seen = apart >= 0 if is_causal else np.ones_like(apart, dtype=bool)
        expected += int((seen & (np.abs(apart) < (window or length))).sum())
    assert Pairs(is_causal, window).count(lengths) == expected


def test_pairs_of_long_documents_do_not_overflow() -> None:
    length = 1_000_000
    assert Pairs(is_causal=True).count(np.array([length], dtype=np.int32)) == length * (length + 1) // 2


def test_a_classifier_as_torch_counts_forward_and_backward_of_a_real_step() -> None:
    # Bidirectional attention computes every pair, so that nothing that is computed is left out of the model's FLOPs.
    config = BertConfig(**SIZES, num_labels=3)
    flops = count_model_flops(AutoModelForSequenceClassification, config, 128, is_causal=False)
    config._attn_implementation = "eager"
    model = AutoModelForSequenceClassification.from_config(config).train()
    lengths = np.array([40, 8])
    with FlopCounterMode(display=False) as counter:
        for length in lengths:
            model(input_ids=torch.ones((1, int(length)), dtype=torch.int64)).logits.sum().backward()
    assert flops.of_step(lengths, targets=2) == counter.get_total_flops()
    assert flops.per_document > 0  # the pooler


def test_what_cannot_be_counted_is_said() -> None:
    with pytest.raises(Uncountable, match="sequences of 3 tokens are too short"):
        count(LlamaConfig(**SIZES), length=3)
    chunked = LlamaConfig(**SIZES)
    chunked.layer_types = ["chunked_attention"] * 3
    with pytest.raises(Uncountable, match="the chunked attention of llama is not counted"):
        count(chunked)


def test_a_model_that_does_not_run_on_the_meta_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def looks(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if hidden.sum().item() > 0 else -hidden

    monkeypatch.setattr(LlamaMLP, "forward", looks)
    with pytest.raises(Uncountable, match="llama does not run without values"):
        count(LlamaConfig(**SIZES))
