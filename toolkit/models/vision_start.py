"""A small vision-language checkpoint assembled from a language model's: a new tower sees, a few of its layers speak.

The architecture is Idefics3's, which SmolVLM has (Marafioti et al. 2025, arXiv 2504.05299): patches of the picture through a
transformer, each square of four put together as one token and projected into the language model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from toolkit.models.quiet import silent

LAYERS = 2
"""Of the language model, from the first on."""
SIDE, PATCH, JOINED = 48, 8, 2
"""Pixels of a picture's side and of a patch's; patches along the side of a square that is one token."""
TOKENS = (SIDE // PATCH // JOINED) ** 2
"""Of one picture."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MARKS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
_SEED = 0


def assemble(language: Path, out: Path) -> None:
    """Write an Idefics3 model with the first layers of the Llama checkpoint `language` to the directory `out`, in fp32.

    Embeddings, layers and the last norm are those of the checkpoint; new tokens begin as the mean of the others. New, and
    drawn from a fixed seed, are the tower and the projector. Conversations are ChatML's, without a system message.
    """
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        tokenizer = AutoTokenizer.from_pretrained(language)
        tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
        tokenizer.chat_template = TEMPLATE
        source = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        model = Idefics3ForConditionalGeneration(_config(source.config, tokenizer))
        _copy(source, model, len(tokenizer))
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ends)
        model.save_pretrained(out)
        images = Idefics3ImageProcessorPil(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        )
        Idefics3Processor(images, tokenizer, image_seq_len=TOKENS, chat_template=TEMPLATE).save_pretrained(out)


def _config(language: object, tokenizer: object) -> Idefics3Config:
    text = language.to_dict() | {  # type: ignore[attr-defined]
        "num_hidden_layers": LAYERS,
        "vocab_size": len(tokenizer),  # type: ignore[arg-type]
        "dtype": "float32",
        "_name_or_path": "",
    }
    text.pop("layer_types", None)
    return Idefics3Config(
        vision_config=Idefics3VisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),  # type: ignore[attr-defined]
        scale_factor=JOINED,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[attr-defined]
        tie_word_embeddings=True,
    )


def _copy(source: torch.nn.Module, model: Idefics3ForConditionalGeneration, tokens: int) -> None:
    weights = source.model.state_dict()  # type: ignore[union-attr]
    table = weights.pop("embed_tokens.weight")
    more = table.mean(0, keepdim=True).expand(tokens - len(table), -1)
    wanted = model.model.text_model.state_dict()
    wanted |= {name: value for name, value in weights.items() if name in wanted}
    model.model.text_model.load_state_dict(wanted | {"embed_tokens.weight": torch.cat([table, more])})
    model.tie_weights()
