"""Where generation stops, and what a checkpoint says about it: from the labels and its files, never from names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, Gemma3Config, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests import tiny
from toolkit.errors import ModelError
from toolkit.models.config import load_config
from toolkit.models.generation import (
    flaw,
    restore_use_cache,
    set_field,
    stated_generation,
    stop_at,
    text_config,
    train_shared_padding,
    use_special_ids,
)
from toolkit.recipe import CausalLM, Model
from toolkit.tasks.language.causal_lm import CausalLMTask

CHAT = [{"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes,\nit is."}]}] * 3


def ends(rows: list[dict[str, Any]], tokenizer: Any, train_on: str = "assistant") -> tuple[int, ...]:
    task = CausalLMTask(CausalLM(train_on=train_on), tokenizer)
    return task.stop_tokens(rows)


@pytest.fixture
def tokenizer() -> Any:
    """Ends turns with <|im_end|> (2), texts with <|endoftext|> (0)."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_the_end_of_a_turn_is_found_in_the_labels(tokenizer: Any, train_on: str) -> None:
    """Also where white space follows it, as when everything is trained."""
    assert ends(CHAT, tokenizer, train_on) == (2,)


def test_texts_and_completions_end_with_the_end_token(tokenizer: Any) -> None:
    assert ends([{"text": "Some text."}], tokenizer) == (0,)
    assert ends([{"prompt": "a", "completion": "b"}], tokenizer) == (2,)
    tokenizer.chat_template = None
    assert ends([{"prompt": "a", "completion": "b"}], tokenizer) == (0,)


def test_an_end_that_is_an_ordinary_token_is_no_stop(tokenizer: Any) -> None:
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<|im_end|>", " END")
    assert ends(CHAT, tokenizer) == ()


def test_two_kinds_of_ends(tokenizer: Any) -> None:
    """As templates have that end a tool call otherwise than an answer; a rare accident is none."""
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}"
        "{{ '<|endoftext|>' if 'call' in message['content'] else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    call = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "call"}]}]
    assert ends([*CHAT, *call], tokenizer) == (2, 0)
    assert ends([*CHAT * 15, *call], tokenizer) == (2,)


def test_rows_that_are_refused_are_left_to_those_who_report_them(tokenizer: Any) -> None:
    assert ends([{"messages": []}, *CHAT], tokenizer) == (2,)
    assert ends([{"messages": []}], tokenizer) == ()


@pytest.mark.parametrize(
    ("stated", "tokens", "stops", "added"),
    [(0, [2], [0, 2], [2]), ([0, 2], [2], [0, 2], []), (None, [2], 2, [2]), (2, [2], 2, []), (0, [], 0, [])],
)
def test_ends_come_on_top_of_those_of_the_checkpoint(
    stated: Any, tokens: list[int], stops: Any, added: list[int]
) -> None:
    config, generation = LlamaConfig(eos_token_id=stated), {"eos_token_id": stated}
    assert stop_at(config, generation, tokens) == added
    assert generation["eos_token_id"] == config.eos_token_id == stops


def test_ids_go_where_the_model_reads_them(tokenizer: Any) -> None:
    config = Gemma3Config()
    set_field(config, "pad_token_id", 7)
    assert text_config(config).pad_token_id == 7
    llama = LlamaConfig(eos_token_id=9)
    use_special_ids(llama, tokenizer, {"eos_token_id": 9})
    assert (llama.bos_token_id, llama.eos_token_id, llama.pad_token_id) == (1, 9, 0)
    tokenizer.bos_token = None
    use_special_ids(llama, tokenizer, {})
    assert (llama.bos_token_id, llama.eos_token_id) == (None, 0)


SETTINGS = {
    "temperature": 0.6,
    "top_p": 0.9,
    "eos_token_id": [1, 2],
    "made_up_later": 3,
    "transformers_version": "4.31.0",
}


def test_settings_of_a_checkpoint_survive_as_they_are(tmp_path: Path) -> None:
    """Also those that transformers itself would not save, as the first Llama-2 had: sampling values without sampling."""
    (tmp_path / "generation_config.json").write_text(json.dumps(SETTINGS))
    found = stated_generation(str(tmp_path), LlamaConfig())
    assert found == SETTINGS
    with pytest.raises(ValueError):
        GenerationConfig(**{key: SETTINGS[key] for key in ("temperature", "top_p")}).save_pretrained(tmp_path)
    assert str(flaw(str(tmp_path), found)).startswith("generation_config.json of the checkpoint is kept as it is")
    (tmp_path / "generation_config.json").unlink()
    for path in (str(tmp_path), None):
        assert str(flaw(path, found)).startswith("what the config says of generation is kept as it is")
        assert flaw(path, {**found, "do_sample": True}) is None


@pytest.mark.parametrize("stated", [True, False])
def test_the_export_says_of_the_cache_what_the_checkpoint_does(tmp_path: Path, stated: bool) -> None:
    LlamaConfig(use_cache=stated).save_pretrained(tmp_path)
    config = load_config(Model(path=str(tmp_path)), vocabulary_size=9, overrides={})
    assert config.use_cache is False
    restore_use_cache(config, str(tmp_path))
    assert config.use_cache is stated
    with pytest.raises(ModelError) as refused:
        load_config(Model(path=str(tmp_path), config={"use_cache": True}), vocabulary_size=9, overrides={})
    assert refused.value.do.endswith("the export says of it what the checkpoint or the architecture does")


def test_without_a_file_the_config_decides(tmp_path: Path) -> None:
    found = stated_generation(str(tmp_path), LlamaConfig(bos_token_id=3, eos_token_id=4))
    assert (found["bos_token_id"], found["eos_token_id"]) == (3, 4)
    assert not any(key.startswith("_") for key in found)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "Expecting property name"), ("[1]", ""), ('{"eos_token_id": "</s>"}', "'</s>' is no token id"), ('{"max_new_tokens": -1}', "max_new_tokens")],
)  # fmt: skip
def test_settings_that_do_not_load_are_refused_at_the_start(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError) as refused:
        stated_generation(str(tmp_path), LlamaConfig())
    assert f"{tmp_path}/generation_config.json is no generation config: " in refused.value.what
    assert reason in refused.value.what
    assert "the export takes them over" in refused.value.expected and "remove it" in refused.value.do


def test_encoders_have_no_text_model_of_their_own() -> None:
    config = BertConfig()
    assert text_config(config) is config


@pytest.mark.parametrize(("pad", "learned"), [(2, True), (0, False)])
def test_a_padding_token_that_ends_texts_is_learned(pad: int, learned: bool) -> None:
    """Else its input embedding would stay zero for ever, untied as it is here."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=8, **sizes, num_key_value_heads=1, eos_token_id=2, pad_token_id=pad)
    model = LlamaForCausalLM(config)
    train_shared_padding(model, config)
    model(torch.tensor([[1, pad, 3]])).logits.square().sum().backward()
    assert bool(model.model.embed_tokens.weight.grad[pad].any()) == learned
