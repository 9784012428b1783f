"""Packing: attention stays inside each document, by measurement, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from toolkit.errors import ModelError
from toolkit.models.isolation import check_isolation, leak

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
LLAMA_LIKE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**LLAMA_LIKE),
        Qwen3Config(**LLAMA_LIKE, head_dim=8),
        MistralConfig(**LLAMA_LIKE, sliding_window=4),
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_do_not_see_each_other(config: object, attention: str) -> None:
    """Restarting positions are enough for these architectures."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        assert leak(model) < 1e-5


def test_a_leaking_architecture_is_refused() -> None:
    """A model that ignores positions sees the document before."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_LIKE)).eval()
    inner = model.base_model.forward

    def without_positions(*args: object, **kwargs: object) -> object:
        kwargs.pop("position_ids", None)
        return inner(*args, **kwargs)

    model.base_model.forward = without_positions
    with torch.no_grad():
        moved = leak(model)
    assert moved > 0.01
    with pytest.raises(ModelError, match=r"data.packing=True: LlamaForCausalLM lets a document see the one before it"):
        check_isolation(moved, type(model).__name__)
