"""The attention of every decoder is one that its class supports, and what it does not support is named."""

from __future__ import annotations

import importlib.util

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.architectures import tiny_config
from toolkit.errors import ModelError, RecipeError
from toolkit.models.attention_choice import choose_attention
from toolkit.recipe import Batch, Data, Model, Precision, Recipe

EAGER = ("bloom", "gemma2", "gpt_oss", "gptj", "mamba", "mpt")
SDPA = ("falcon", "gemma3_text", "gpt2", "llama", "qwen3")


@pytest.mark.parametrize(("kinds", "wanted"), [(EAGER, "eager"), (SDPA, "sdpa")])
def test_auto_takes_the_best_that_there_is(kinds: tuple[str, ...], wanted: str) -> None:
    for kind in kinds:
        config = tiny_config(kind)
        config._attn_implementation = choose_attention(AutoModelForCausalLM, config, "auto")
        assert config._attn_implementation == wanted, kind
        model = AutoModelForCausalLM.from_config(config)
        assert model.config._attn_implementation == wanted


def test_what_a_class_does_not_support_is_refused_by_name() -> None:
    with pytest.raises(ModelError) as caught:
        choose_attention(AutoModelForCausalLM, CONFIG_MAPPING["gemma2"](), "sdpa")
    error = caught.value
    assert error.what == "model.attention='sdpa': Gemma2ForCausalLM does not support it"
    assert error.expected == "'auto' or one of eager, flash_attention_2, flash_attention_3"
    assert error.do == "set model.attention='auto', which takes 'eager' here"
    with pytest.raises(ModelError, match="BloomForCausalLM does not support it"):
        choose_attention(AutoModelForCausalLM, CONFIG_MAPPING["bloom"](), "flash_attention_2")


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed here")
def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(ModelError) as caught:
        choose_attention(AutoModelForCausalLM, CONFIG_MAPPING["llama"](), "flash_attention_2")
    assert caught.value.what == "model.attention='flash_attention_2': the package flash-attn is not installed"
    assert caught.value.do == "set model.attention='auto', or install flash-attn"


def test_flash_attention_does_not_compute_in_fp32() -> None:
    with pytest.raises(RecipeError, match=r"model\.attention='flash_attention_2' with precision\.dtype='fp32'"):
        Recipe(
            model=Model(path="m", attention="flash_attention_2"),
            data=Data(train="d"),
            batch=Batch(global_size=1),
            precision=Precision(dtype="fp32"),
            steps=1,
        )


def test_an_architecture_without_the_kind_of_head() -> None:
    with pytest.raises(ModelError, match=r"mamba .MambaConfig. has no class for AutoModelForSequenceClassification"):
        choose_attention(AutoModelForSequenceClassification, CONFIG_MAPPING["mamba"](), "auto")
