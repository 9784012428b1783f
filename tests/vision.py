"""Small vision-language checkpoints of each family, made with fixed seeds, and rows with images for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

SPECIAL = (
    "<image>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen2-VL's: parts in their order."""
FIRST = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% else %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As LLaVA-1.5's: images before the text of their message."""

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def tokenizer(template: str, *, begins: bool = False) -> Any:
    """The byte-level tokenizer with the tokens of images; `begins`: it puts its first token before every text."""
    from tokenizers import processors

    made = tiny.byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    made.chat_template = template
    if begins:
        made.bos_token = "<|endoftext|>"
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.bos_token_id)]
        )
    return made


def _text(made: Any) -> dict[str, Any]:
    ids = {"bos_token_id": None, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    return {**TEXT, "vocab_size": len(made), **ids}


def llava() -> tuple[Any, Any]:
    """CLIP's tower, 24 x 24 pixels in patches of 8, its class token left out: 9 tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    made = tokenizer(FIRST, begins=True)
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = LlavaProcessor(
        images, made, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=FIRST,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=24, patch_size=8),
        text_config=LlamaConfig(**_text(made)),
        image_token_id=processor.image_token_id,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    return config, processor


def llava_next() -> tuple[Any, Any]:
    """The same with tiles beside the whole image, in grids of 1 x 2, 2 x 1 and 2 x 2."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    made = tokenizer(FIRST, begins=True)
    grid = [[24, 48], [48, 24], [48, 48]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        images, made, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=FIRST,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=24, patch_size=8),
        text_config=LlamaConfig(**_text(made)),
        image_token_id=processor.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    return config, processor


def _qwen(kind: str) -> tuple[Any, Any]:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from toolkit.tasks.vision_language.processor import _without_video

    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    made = tokenizer(template)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 32 * 32}
    )
    processor = _without_video(getattr(transformers, f"{name}Processor"))(images, made, chat_template=template)
    towers: dict[str, dict[str, Any]] = {
        "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "qwen2_5_vl": {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
        "qwen3_vl": {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    }  # fmt: skip
    tower: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {**_text(made), "rope_parameters": rotary, **({"head_dim": 8} if kind == "qwen3_vl" else {})}
    config = getattr(transformers, f"{name}Config")(
        vision_config={**tower, **towers[kind], "initializer_range": 0.2},
        text_config=text,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=made.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=made.convert_tokens_to_ids("<|vision_end|>"),
    )
    return config, processor


def idefics3() -> tuple[Any, Any]:
    """SigLIP's tower, tiles of 16 x 16 pixels in patches of 4, four of which are one token: 4 tokens for each tile."""
    from transformers import Idefics3Config, Idefics3Processor, LlamaConfig
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    template = CHATML.replace("IMAGE", "<image>")
    made = tokenizer(template)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, made, image_seq_len=4, chat_template=template)
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**TOWER, image_size=16, patch_size=4),
        text_config=LlamaConfig(**_text(made)),
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=made.pad_token_id,
        tie_word_embeddings=False,
    )
    return config, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: _qwen("qwen3_vl"),
    "idefics3": idefics3,
}


def checkpoint(family: str, folder: Path) -> Path:
    """A checkpoint of `family` with random weights, and its processor, in `folder`."""
    import torch
    from transformers import AutoModelForImageTextToText

    config, processor = FAMILIES[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():  # what begins at zero shows nothing of an image
                if not parameter.any():
                    parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(number: int, size: tuple[int, int] | None = None, kind: str = "PNG") -> bytes:
    """An image like no other: `number` decides its colours, and its size where none is given."""
    from PIL import Image

    width, height = size or (20 + 7 * (number % 5), 16 + 9 * (number % 4))
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BILINEAR).save(out, kind)
    return out.getvalue()


def chats(count: int = 48) -> list[dict[str, Any]]:
    """Questions about none, one or two images, with answers of very different lengths; every fifth has a second turn."""
    rows = []
    for number, (name, kind, text) in enumerate(tiny.documented()[:count]):
        images = [
            {"bytes": picture(3 * number + index), "path": f"{number}-{index}.png"} for index in range(number % 3)
        ]
        parts: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in images]
        asked = [*parts[:1], {"type": "text", "text": f"What does {name} do?"}, *parts[1:]]
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": text[: 10 + 17 * (number % 7)].strip()}]},
        ]
        if number % 5 == 0:
            messages.append({"role": "user", "content": [{"type": "text", "text": "And?"}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": f"It is a {kind}."}]})
        rows.append({"messages": messages, "images": images})
    return rows


def questions(count: int = 32) -> list[dict[str, Any]]:
    """Short questions about one image each."""
    return [
        {
            "image": {"bytes": picture(number), "path": None},
            "question": f"What is {number}?",
            "answer": f"No. {number}.",
        }
        for number in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` as a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def shown(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of `row`, one of `chats`, with the images in them, as transformers' processors take them."""
    from PIL import Image

    images = iter(row["images"])

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] != "image":
            return one
        return {"type": "image", "image": Image.open(io.BytesIO(next(images)["bytes"])).convert("RGB")}

    return [{**message, "content": [part(one) for one in message["content"]]} for message in row["messages"]]
