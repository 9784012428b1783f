"""What all stages share: where they run and at what size, the models' shapes, the data, and recipes on them."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SHAPES: dict[str, dict[str, Any]] = {
    "0.2B": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
    "1B": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "3B": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "tie_word_embeddings": False,
    },
}
"""SmolLM2's smallest with the vocabulary of the others; Llama 3.2's 1B and 3B, Llama 3.1's 8B. Weights are random, so that
nothing has to be fetched."""

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "tie_word_embeddings": True,
}
"""What stands for each of them in a rehearsal."""

LONGEST = 2**21
"""Positions of each model: no search for the longest context meets their end."""


@dataclass(frozen=True)
class Setting:
    """One stage's surroundings."""

    scale: Literal["tiny", "full"]
    """"tiny": only prove that everything runs; the numbers mean nothing."""
    device: Literal["cpu", "cuda"]
    folder: Path
    """The stage's own."""

    @property
    def is_tiny(self) -> bool:
        return self.scale == "tiny"

    @property
    def vocabulary(self) -> int:
        return 512 if self.is_tiny else 128256

    @property
    def length(self) -> int:
        """Tokens of a packed sequence."""
        return 128 if self.is_tiny else 4096

    def shape(self, name: str) -> dict[str, Any]:
        """Fields of the model's configuration."""
        return {
            **(TINY if self.is_tiny else SHAPES[name]),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": LONGEST,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def parameters(self, name: str) -> int:
        """Of the model of that shape."""
        shape = self.shape(name)
        width, heads = shape["hidden_size"], shape["num_attention_heads"]
        attention = 2 * width * width * (1 + shape["num_key_value_heads"] / heads)
        layer = attention + 3 * width * shape["intermediate_size"] + 2 * width
        tables = 1 if shape["tie_word_embeddings"] else 2
        return int(shape["num_hidden_layers"] * layer + tables * self.vocabulary * width + width)

    def place(self, row: str) -> Path:
        """A folder for what `row` writes."""
        return self.folder / re.sub(r"\W+", "_", row)


def recipe_of(
    setting: Setting,
    shape: str,
    fields: Mapping[str, Any],
    *,
    global_size: int,
    micro_size: int,
    steps: int,
    length: int | None = None,
) -> Any:
    """Full fine-tuning of `shape` from random weights on packed chats, in bf16; `fields` are names of the recipe, dotted or
    of a whole section."""
    from toolkit import Recipe

    problem = problem_of(setting)
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "architecture": "llama",
            "weights": "random",
            "tokenizer": str(problem / "tokenizer"),
            "config": setting.shape(shape),
        },
        "data": {"train": str(problem / "chats.jsonl")},
        "batch": {
            "global_size": global_size,
            "micro_size": micro_size,
            "sequence_length": length or setting.length,
        },
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.01, "implementation": "torch"},
        "schedule": {"type": "constant"},
        "precision": {"dtype": "bf16"},
        "checkpoint": {"export": False},
        "tracking": {"tensorboard": False},
    }
    return Recipe(**with_fields(sections, fields), steps=steps)


def with_fields(sections: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`sections` of a recipe with the values of `fields`."""
    changed = {name: dict(values) for name, values in sections.items()}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        if field:
            changed.setdefault(section, {})[field] = value
        else:
            changed[section] = dict(value)
    return changed


def problem_of(setting: Setting) -> Path:
    """The folder with a tokenizer of made-up words, chats over them (chats.jsonl), and pairs of answers (pairs.jsonl)."""
    from toolkit.data.words import write_tokenizer

    folder = setting.folder.parent / "problem"  # the same for all stages
    if not (folder / "pairs.jsonl").is_file():
        write_tokenizer(folder / "tokenizer", setting.vocabulary)
        count, median = (200, 24) if setting.is_tiny else (1500, 350)
        write_chats(
            folder / "chats.jsonl", count=count, median=median, longest=setting.length, words=setting.vocabulary
        )
        chats = [json.loads(line) for line in (folder / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
        with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
            for chat, other in zip(chats, [*chats[1:], chats[0]], strict=True):
                pair = {"prompt": chat["prompt"], "chosen": chat["completion"], "rejected": other["completion"]}
                file.write(json.dumps(pair) + "\n")
    return folder


def write_chats(path: Path, *, count: int, median: int, longest: int, words: int) -> None:
    """`count` questions with answers: log-normal lengths (sigma 1) around `median`, of which a third is the question.

    The longest fill a sequence of `longest` tokens. The same file every time.
    """
    source = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            # One place is left for the end token.
            length = min(longest - 1, max(8, round(median * math.exp(source.gauss(0.0, 1.0)))))
            tokens = [f"w{source.randrange(4, words)}" for _ in range(length)]
            cut = length // 3
            file.write(
                json.dumps({"prompt": " ".join(tokens[:cut]) + " ", "completion": " ".join(tokens[cut:])}) + "\n"
            )
