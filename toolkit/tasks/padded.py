"""Batches of encoders: rows of one example each, filled up to the longest; and what a model is called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from toolkit.data.example import Example
from toolkit.errors import RecipeError
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor, tell_documents
from toolkit.tasks.base import Batch, Task

TOKEN_TYPES = "token_type_ids"
"""Which of two texts each token belongs to, 0 or 1."""


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError for a tokenizer without a padding token."""
    if tokenizer.pad_token_id is None:
        raise RecipeError(
            f"the tokenizer at {tokenizer.name_or_path!r} has no padding token",
            expected="one: texts of a batch are padded to the longest",
            do="use a checkpoint whose tokenizer names a pad_token, or add it to tokenizer_config.json",
        )


def check_places(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError for a tokenizer that does not know where in a text its tokens stand."""
    if not tokenizer.is_fast:
        raise RecipeError(
            f"the tokenizer at {tokenizer.name_or_path!r} does not say where in the text a token stands",
            expected="a fast tokenizer (tokenizer.json)",
            do="add tokenizer.json to the checkpoint",
        )


def padded(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], fillers: Mapping[str, int] | None = None
) -> Batch:
    """input_ids and attention_mask [B, T] with T the longest of `examples`, document_lengths [B, 2].

    `fillers` names further arrays of a number per token, [B, T], each with what fills it up. The lengths are those of a
    text and of its padding, for attention without a mask (`toolkit.models.attention`).
    """
    lengths = [len(example["input_ids"]) for example in examples]
    longest = max(lengths)
    batch = {}
    for name, filler in {"input_ids": tokenizer.pad_token_id, **(fillers or {})}.items():
        rows = np.full((len(examples), longest), filler, dtype=np.int64)
        for row, example, length in zip(rows, examples, lengths, strict=True):
            row[:length] = example[name]
        batch[name] = torch.from_numpy(rows)
    return {
        **batch,
        "attention_mask": (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long(),
        DOCUMENT_LENGTHS: lengths_tensor([[length, longest - length] for length in lengths]),
    }


class EncoderTask(Task):
    """What the tasks of encoders share: padded rows, a head that may be new, and token types where the model knows them."""

    may_lack_head = True
    tells_texts = True
    """Whether the model tells the first of two texts from the second by their token types; known after `prepare`."""

    def prepare(self, model: nn.Module) -> None:
        """Look whether the model knows token types."""
        named = TOKEN_TYPES in inspect.signature(model.forward).parameters
        self.tells_texts = named and getattr(model.config, "type_vocab_size", 2) > 1

    def inputs(self, batch: Batch) -> Batch:
        """All but the answers, and token types that the model does not know."""
        found = super().inputs(batch)
        if not self.tells_texts:
            found.pop(TOKEN_TYPES, None)
        return found

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """What the model returns for `batch`."""
        return model(**tell_documents(model, self.inputs(batch)))


def has_token_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer gives a model token types."""
    return TOKEN_TYPES in tokenizer.model_input_names


def closing_tokens(special: Sequence[int]) -> int:
    """How many of the tokenizer's own tokens stand at the end, by a special_tokens_mask."""
    count = 0
    for flag in reversed(special):
        if not flag:
            break
        count += 1
    return count
