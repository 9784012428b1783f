"""Small real inputs, made with fixed seeds: tokenizers, models and data files. For the tests' fixtures and benchmarks."""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import json
import os
import statistics
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

MODULES = [argparse, csv, inspect, json, os, statistics, textwrap]
MORE_MODULES = ["collections", "datetime", "functools", "heapq", "logging", "pathlib", "random", "shutil", "string"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def documented() -> list[tuple[str, str, str]]:
    """(dotted name, "class" or "function", docstring) of the standard library's documented objects, sorted."""
    found = {}
    for module in [*MODULES, *map(importlib.import_module, MORE_MODULES)]:
        for name, member in inspect.getmembers(module, lambda m: inspect.isclass(m) or inspect.isroutine(m)):
            text = inspect.getdoc(member)
            if text and not name.startswith("_"):
                kind = "class" if inspect.isclass(member) else "function"
                found[f"{module.__name__}.{name}"] = (kind, text)
    return [(name, *found[name]) for name in sorted(found)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def byte_tokenizer() -> Any:
    """Byte-level BPE of 640 tokens with a ChatML template; eos <|im_end|>, pad <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator([text for _, _, text in documented()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def llama(tokenizer: Any, num_layers: int = 2) -> Any:
    """Random Llama in fp32 for `tokenizer`: `num_layers` layers, width 64, 4 heads, 2 key-value heads, tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def lively(model: Any, scale: float = 0.4) -> Any:
    """`model` with weights so large that the likeliest token changes from place to place."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "position" not in name:
                parameter.copy_(torch.randn_like(parameter) * scale)
    return model


def bert(tokenizer: Any, spread: float = 0.02) -> Any:
    """Random BERT encoder in fp32 for `tokenizer`, without a classifier: 2 layers, width 64; weights deviate by `spread`."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=spread,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(config)


def encoder_decoder(kind: str, tokenizer: Any) -> Any:
    """Random "t5", "bart" or "bert2bert" in fp32 for `tokenizer`: 2 layers on each side, width 32."""
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        EncoderDecoderConfig,
        EncoderDecoderModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    size, pad = len(tokenizer), tokenizer.pad_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else pad
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "t5":
            fields = {"initializer_factor": 0.3, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
            t5 = T5Config(vocab_size=size, **fields, pad_token_id=pad, eos_token_id=end, decoder_start_token_id=pad)
            return T5ForConditionalGeneration(t5)
        if kind == "bart":
            sides = {f"{side}_layers": 2 for side in ("encoder", "decoder")}
            sides |= {
                f"{side}_{name}": value
                for side in ("encoder", "decoder")
                for name, value in (("ffn_dim", 64), ("attention_heads", 4))
            }
            bart = BartConfig(
                vocab_size=size, d_model=32, **sides, max_position_embeddings=256, pad_token_id=pad, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=end, decoder_start_token_id=end, forced_eos_token_id=None, init_std=0.1,
            )  # fmt: skip
            model = BartForConditionalGeneration(bart)
            model.final_logits_bias.normal_()
            return model
        sides = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        berts = [BertConfig(vocab_size=size, **sides, max_position_embeddings=256, pad_token_id=pad) for _ in range(2)]
        config = EncoderDecoderConfig.from_encoder_decoder_configs(*berts)
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = start, pad, end
        return EncoderDecoderModel(config=config)


def summaries() -> list[dict[str, str]]:
    """96 docstrings of very different lengths, and the names that they belong to."""
    return [
        {"source": text[: 20 + 37 * (number % 8)], "target": name.replace(".", " ")}
        for number, (name, _, text) in enumerate(documented()[:96])
    ]


def text_pairs() -> list[dict[str, Any]]:
    """96 names, the first lines of their docstrings, those of other names, and a number from -1 to 1."""
    found = [
        (name.replace(".", " "), text.partition("\n")[0][: 20 + 13 * (number % 7)])
        for number, (name, _, text) in enumerate(documented()[:97])
    ]
    return [
        {"anchor": name, "positive": text, "negative": found[number + 1][1], "score": (number * 7 % 41) / 20 - 1.0}
        for number, (name, text) in enumerate(found[:96])
    ]


def wordpiece_tokenizer() -> Any:
    """A transformers tokenizer of 800 word pieces that frames a text as [CLS] text [SEP]: the same in every process.

    The trainer of tokenizers takes continuing letters in an order that changes from process to process. So the pieces
    are the letters of the documentation, alone and continuing, and then its most frequent words, beginnings and endings.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    text = normalizer.normalize_str("\n".join(text for _, _, text in documented()))
    words = Counter(word for word, _ in splitter.pre_tokenize_str(text))
    letters = sorted(set("".join(words)))
    pieces = Counter(words)
    for word, count in words.items():
        for length in range(2, min(len(word), 6)):
            pieces[word[:length]] += count
            pieces["##" + word[-length:]] += count
    ranked = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    chosen = list(dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *ranked]))[:800]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(chosen)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def save(model: Any, tokenizer: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def chats() -> list[dict[str, Any]]:
    """200 chats of very different lengths; every fourth has a system message, every fifth a second turn."""
    rows = []
    for number, (name, kind, text) in enumerate(documented()[:200]):
        first, _, rest = text.partition("\n\n")
        messages = [{"role": "user", "content": f"What does {name} do?"}, {"role": "assistant", "content": first}]
        if number % 4 == 0:
            messages.insert(0, {"role": "system", "content": "You answer questions about Python."})
        if number % 5 == 0:
            messages.append({"role": "user", "content": "Tell me more."})
            messages.append({"role": "assistant", "content": rest.strip() or f"It is a {kind}."})
        rows.append({"messages": messages})
    return rows


def preferences(count: int = 96) -> list[dict[str, str]]:
    """Questions with the first line of their docstring and with that of another one, of very different lengths."""
    rows = []
    texts = [(name, text.partition("\n\n")[0][:160]) for name, _, text in documented()]
    for number, (name, text) in enumerate(texts[:count]):
        other = texts[(number * 7 + 3) % len(texts)][1]
        rejected = other if other != text else f"It is {name}."
        rows.append({"prompt": f"What does {name} do?", "chosen": text, "rejected": rejected})
    return rows


def judged(count: int = 96) -> list[dict[str, Any]]:
    """The same, as answers with a label; every third one is bad."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if number % 3 else "rejected"], "label": bool(number % 3)}
        for number, row in enumerate(preferences(count))
    ]


def openings() -> list[dict[str, str]]:
    """160 docstring openings, labelled "class" or "function", half and half."""
    kinds: dict[str, list[str]] = {"class": [], "function": []}
    for _, kind, text in documented():
        kinds[kind].append(text.partition("\n\n")[0])
    pairs = zip(kinds["class"][:80], kinds["function"][:80], strict=True)
    return [
        {"text": text, "label": label}
        for pair in pairs
        for text, label in zip(pair, ("class", "function"), strict=True)
    ]
