"""The shared inputs are what the other tests take them for."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer


def test_llama_and_its_tokenizer(tiny_llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (len(tokenizer), 64)
    text = "Return the sum: \u00e9 \u4e2d\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(chat).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert model(torch.tensor([ids])).logits.shape == (1, len(ids), len(tokenizer))


def test_bert_has_no_classifier(tiny_bert_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    model = AutoModel.from_pretrained(tiny_bert_dir)
    ids = tokenizer("a function", return_tensors="pt").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0])[0] == "[CLS]"
    assert model(ids).last_hidden_state.shape == (1, ids.shape[1], 64)
    assert not [name for name, _ in model.named_parameters() if "classifier" in name]


def test_files(chat_file: Path, classification_file: Path) -> None:
    chats = [json.loads(line)["messages"] for line in chat_file.read_text().splitlines()]
    lengths = [sum(len(message["content"]) for message in chat) for chat in chats]
    assert len(chats) == 200
    assert max(lengths) > 20 * min(lengths)
    assert {len(chat) for chat in chats} == {2, 3, 4, 5}
    labels = [json.loads(line)["label"] for line in classification_file.read_text().splitlines()]
    assert labels.count("class") == labels.count("function") == 80
