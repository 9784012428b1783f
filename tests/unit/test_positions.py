"""The longest sequence that is let through is the longest that the model can compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from toolkit.errors import ModelError
from toolkit.models.positions import check_sequence_length

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 130,
}
OFFSET = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "roberta-prelayernorm",
    "data2vec-text",
    "mpnet",
    "esm",
    "xmod",
    "ibert",
)
PLAIN = ("bert", "electra", "distilbert", "opt", "gpt2")


def config_of(kind: str) -> Any:
    extra = {"pad_token_id": 1} | ({"languages": ["en_XX"], "default_language": "en_XX"} if kind == "xmod" else {})
    return CONFIG_MAPPING[kind](**SMALL, **extra)


@pytest.mark.parametrize("kind", [*OFFSET, *PLAIN])
def test_the_limit_is_where_the_model_ends(kind: str) -> None:
    """Of 130 rows RoBERTa and its kin give 2 to padding: 128 tokens fit."""
    config = config_of(kind)
    usable = 128 if kind in OFFSET else 130
    check_sequence_length(AutoModelForSequenceClassification, config, usable)
    with pytest.raises(ModelError) as caught:
        check_sequence_length(AutoModelForSequenceClassification, config, usable + 1)
    assert caught.value.expected == f"at most {usable}"
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, usable), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, usable + 1), 5))


def test_the_message_says_where_the_positions_went() -> None:
    with pytest.raises(ModelError) as caught:
        check_sequence_length(AutoModelForSequenceClassification, config_of("roberta"), 130)
    assert caught.value.what == (
        "batch.sequence_length=130 is longer than the model's 128 positions "
        "(max_position_embeddings=130, of which the first 2 stand for padding)"
    )
    assert caught.value.do == "set batch.sequence_length=128 or less"


def test_rotary_positions_have_no_table() -> None:
    config = CONFIG_MAPPING["llama"](max_position_embeddings=64)
    check_sequence_length(AutoModelForCausalLM, config, 64)
    with pytest.raises(ModelError, match="longer than the model's 64 positions"):
        check_sequence_length(AutoModelForCausalLM, config, 65)
