"""A small new vision-language checkpoint with the tokenizer of a language model's, to be trained from its first step on.

The architecture is Idefics3's, which SmolVLM has (Marafioti et al. 2025, arXiv 2504.05299): patches of the picture through a
transformer, each square of four put together as one token and projected into the language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from toolkit.models.quiet import silent

SIDE, PATCH, JOINED = 48, 8, 2
"""Pixels of a picture's side and of a patch's; patches along the side of a square that is one token."""
TOKENS = (SIDE // PATCH // JOINED) ** 2
"""Of one picture."""
LANGUAGE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
}
TOWER = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MARKS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
_SEED = 0


def assemble(language: Path, out: Path) -> None:
    """Write a new Idefics3 model with the tokenizer of the checkpoint `language` to the directory `out`, in fp32.

    Weights are drawn from a fixed seed. Conversations are ChatML's, without a system message.
    """
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        tokenizer: Any = AutoTokenizer.from_pretrained(language)
        tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
        tokenizer.chat_template = TEMPLATE
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model = Idefics3ForConditionalGeneration(_config(tokenizer, ids))
        model.generation_config = GenerationConfig(**ids)
        model.save_pretrained(out)
        images = Idefics3ImageProcessorPil(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        )
        Idefics3Processor(images, tokenizer, image_seq_len=TOKENS, chat_template=TEMPLATE).save_pretrained(out)


def _config(tokenizer: Any, ids: dict[str, int]) -> Idefics3Config:
    return Idefics3Config(
        vision_config=Idefics3VisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), tie_word_embeddings=True, **ids),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=JOINED,
        pad_token_id=ids["pad_token_id"],
        tie_word_embeddings=True,
    )
