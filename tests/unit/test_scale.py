"""Scaling an architecture down keeps what makes it that architecture."""

from __future__ import annotations

import pytest
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from toolkit.errors import ModelError
from toolkit.models.scale import check_size, comparable, scale_down


def small(config: object, **changes: int) -> object:
    """Scaled down as for two layers and degrees of two."""
    values = {"num_layers": 2, "key_value_heads": 2, "vocabulary_size": 256, **changes}
    return scale_down(config, **values)  # type: ignore[arg-type]


def test_heads_keep_their_ratio() -> None:
    """Eight queries per key-value head stay eight; one head for all stays one; no grouping stays none."""
    big = LlamaConfig(hidden_size=8192, num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672)
    config = small(big)
    assert (config.num_attention_heads, config.num_key_value_heads) == (16, 2)
    assert config.hidden_size == config.num_attention_heads * config.head_dim
    assert (big.hidden_size, big.num_attention_heads) == (8192, 64), "the original stays as it is"
    assert small(big, key_value_heads=4).num_key_value_heads == 4
    assert small(LlamaConfig(num_attention_heads=32, num_key_value_heads=1)).num_key_value_heads == 1
    assert small(LlamaConfig(num_attention_heads=32, num_key_value_heads=32)).num_attention_heads == 4
    assert small(GPT2Config()).n_head == 4


def test_a_head_size_of_its_own_stays_apart_from_the_width() -> None:
    """Qwen3's heads together are wider than its hidden states."""
    config = small(Qwen3Config(hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128))
    assert config.hidden_size != config.num_attention_heads * config.head_dim


def test_every_kind_of_layer_is_kept() -> None:
    """Gemma 3 has full attention in every sixth layer; a longer stack starts with the first layers."""
    whole = Gemma3TextConfig(num_hidden_layers=12)
    config = small(whole)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 2 and config.sliding_window == 16
    assert small(whole, num_layers=4).layer_types == [*["sliding_attention"] * 3, "full_attention"]
    assert small(LlamaConfig(num_hidden_layers=2), num_layers=4).num_hidden_layers == 4


def test_vocabulary_dropout_and_experts() -> None:
    """Special tokens are those of the random words; nothing random is left; experts are few."""
    config = comparable(small(GPT2Config()))
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (256, 0, 2)
    assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0.0, 0.0, 0.0)
    experts = small(Qwen3MoeConfig(num_experts=128, num_experts_per_tok=8))
    assert (experts.num_experts, experts.num_experts_per_tok) == (16, 2)


def test_rotary_factors_follow_the_head_size() -> None:
    """One factor for each pair of channels."""
    rotary = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}
    config = small(Phi3Config(rope_parameters={**rotary, "original_max_position_embeddings": 4096}))
    head_size = config.hidden_size // config.num_attention_heads
    assert len(config.rope_parameters["long_factor"]) == head_size // 2
    assert 0 < check_size(AutoModelForCausalLM, config) < 1_000_000


def test_what_cannot_be_scaled_down_is_named() -> None:
    """A configuration without heads, and one with a large part that no rule knows."""
    with pytest.raises(ModelError, match=r"MambaConfig cannot be scaled down: .*num_attention_heads"):
        small(MambaConfig())
    with pytest.raises(ModelError, match=r"Gemma3Config cannot be scaled down: it still has [\d,]+ parameters"):
        check_size(AutoModelForCausalLM, small(Gemma3Config()))
