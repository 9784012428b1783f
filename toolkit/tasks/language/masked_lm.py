"""Masked language modelling: encoders on plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from toolkit.data import tokens
from toolkit.data.example import IGNORED, Example, Row
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.errors import DataError, RecipeError
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor, tell_documents
from toolkit.models.decoding import Generate
from toolkit.models.heads import TARGET_ROWS, target_rows
from toolkit.models.selected_rows import SelectedRows
from toolkit.recipe import MaskedLM
from toolkit.tasks.base import Batch, Loss, Sums
from toolkit.tasks.columns import text_of
from toolkit.tasks.language.masking import Tokens, choose, hide, num_chosen
from toolkit.tasks.padded import EncoderTask, check_padding, closing_tokens, padded
from toolkit.tasks.sequence_parts import part_of


class MaskedLMTask(EncoderTask):
    """Rows hold a text. Stored are its tokens and the words they are of; what is hidden is drawn for each batch."""

    auto_class = AutoModelForMaskedLM
    can_pack = True
    transforms = True
    answers = frozenset(("targets", TARGET_ROWS))
    settles = True

    def __init__(self, options: MaskedLM, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        check_padding(tokenizer)
        self.selected: SelectedRows | None = None
        if tokenizer.mask_token_id is None:
            raise RecipeError(
                f"the tokenizer at {tokenizer.name_or_path!r} has no mask token, with task.name='masked_lm'",
                expected="one: it stands in the place of hidden tokens",
                do="use the checkpoint of a masked language model, or add mask_token to tokenizer_config.json",
            )
        if options.whole_word and not tokenizer.is_fast:
            raise RecipeError(
                f"task.whole_word=True: the tokenizer at {tokenizer.name_or_path!r} does not say which word a token is of",
                expected="a fast tokenizer (tokenizer.json)",
                do="set task.whole_word=False, or add tokenizer.json to the checkpoint",
            )
        self._check_prompt()

    def _check_prompt(self) -> None:
        prompt, mask = self.options.sample_prompt, str(self.tokenizer.mask_token)
        if prompt is not None and prompt.count(mask) != 1:
            raise RecipeError(
                f"task.sample_prompt={prompt!r:.80} has {prompt.count(mask)} mask tokens",
                expected=f"one {mask}, which is filled in",
                do=f"write {mask} in the place of a word",
            )

    # One row

    def encode(self, row: Row) -> list[Example]:
        """One example: the text between the tokenizer's own special tokens, and the word of each token (-1: never hidden)."""
        text = text_of(row, self.options.text_field, "text_field")
        encoded = self.tokenizer(text, truncation=False, verbose=False, return_special_tokens_mask=True)
        ids, framing = encoded["input_ids"], encoded["special_tokens_mask"]
        numbers = encoded.word_ids() if self.options.whole_word else [0] * len(ids)
        special = {*self.tokenizer.all_special_ids}
        words = [
            -1 if frame or token in special or number is None else number
            for token, frame, number in zip(ids, framing, numbers, strict=True)
        ]
        if all(word < 0 for word in words):
            raise DataError(
                f"task.text_field={self.options.text_field!r} gives {text!r:.80}, without a token to hide",
                expected="a text with words that the tokenizer knows",
                do="remove the row",
            )
        found = {
            "input_ids": ids,
            "words": words,
            "opening": [closing_tokens(framing[::-1])],
            "closing": [closing_tokens(framing)],
        }
        return [{name: np.array(column, np.int32) for name, column in found.items()}]

    def targets(self, example: Example) -> int:
        """Tokens that are hidden in each pass (at most, where words are chosen)."""
        candidates = int((example["words"] >= 0).sum())
        return num_chosen(candidates, self.options.mask_probability) if candidates else 0

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """As for any text, but that every part of one that is split stands between special tokens of its own."""
        length, opening, closing = tokens.size(example), int(example["opening"][0]), int(example["closing"][0])
        room = capacity - opening - closing
        if length <= capacity or overlong != "split":
            return tokens.fit(example, capacity, overlong, counts)
        if room < 1:
            raise DataError(
                f"batch.sequence_length={capacity} has no place for a token beside the {opening + closing} special ones",
                expected="room for text",
                do="raise batch.sequence_length",
            )
        counts.split += 1
        ends = [(start, min(start + room, length - closing)) for start in range(opening, length - closing, room)]
        kept = [np.r_[:opening, start:stop, length - closing : length] for start, stop in ends]
        return [
            {name: column[part] if name in ("input_ids", "words") else column for name, column in example.items()}
            for part in kept
        ]

    @cached_property
    def _ordinary(self) -> Tokens:
        """Token ids that may stand in the place of another: not special ones, which some models look for."""
        special = {*self.tokenizer.all_special_ids}
        return np.array([token for token in range(len(self.tokenizer)) if token not in special], np.int32)

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """Tokens of which some are hidden, and labels: what was there, -100 elsewhere."""
        options, ids = self.options, example["input_ids"]
        chosen = choose(example["words"], options.mask_probability, random, whole_word=options.whole_word)
        labels = np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        hidden = hide(
            ids,
            chosen,
            random,
            mask_token=self.tokenizer.mask_token_id,
            mask_share=options.mask_share,
            others=self._ordinary,
            random_share=options.random_share,
        )
        return {"input_ids": hidden, "labels": labels}

    def show(self, example: Example) -> Shown:
        """What the model reads in an evaluation, the tokens to be told marked."""
        drawn = self.transform(example, np.random.Generator(np.random.PCG64(0)), is_trained=False)
        return tokens.show(self.tokenizer, drawn, trained=int((drawn["labels"] != IGNORED).sum()))

    # A batch

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids and targets [B, T] with T the longest sequence, target_rows [M], document_lengths [B, N].

        Besides attention_mask [B, T] where each sequence is one example; where several are packed position_ids [B, T],
        which restart with every one, and padding is an example of its own.
        """
        if all(len(sequence) == 1 for sequence in sequences):
            batch = padded(self.tokenizer, [sequence[0] for sequence in sequences], {"labels": IGNORED})
        else:
            batch = self._packed(sequences)
        targets = batch.pop("labels")
        return {**batch, "targets": targets, TARGET_ROWS: target_rows(targets)}

    def stand_in(self, length: int, config: Any) -> Example:
        """As many tokens are hidden as on average."""
        found = super().stand_in(length, config)
        is_hidden = np.arange(length) < self.options.mask_probability * length
        return {**found, "labels": np.where(is_hidden, found["labels"], IGNORED)}

    def _packed(self, sequences: list[list[Example]]) -> Batch:
        whole = [
            {name: np.concatenate([example[name] for example in sequence]) for name in ("input_ids", "labels")}
            for sequence in sequences
        ]
        batch = padded(self.tokenizer, whole, {"labels": IGNORED})
        shape = batch["input_ids"].shape
        documents, positions = [], torch.zeros(shape, dtype=torch.int64)
        for row, sequence in zip(positions, sequences, strict=True):
            sizes = [tokens.size(example) for example in sequence]
            rest = shape[1] - sum(sizes)
            documents.append([*sizes, rest] if rest else sizes)
            row[:] = torch.cat([torch.arange(size) for size in documents[-1]])
        del batch["attention_mask"]
        return {**batch, "position_ids": positions, DOCUMENT_LENGTHS: lengths_tensor(documents)}

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """Equal parts, see `toolkit.tasks.sequence_parts`."""
        return part_of(batch, index, count)

    def count(self, batch: Batch) -> int:
        """Hidden tokens."""
        return len(batch[TARGET_ROWS])

    # The model

    def prepare(self, model: nn.Module) -> None:
        """Make it possible to compute the logits of hidden tokens alone."""
        super().prepare(model)
        self.selected = SelectedRows(model)

    def settle(self, model: nn.Module) -> None:
        """Compute the logits of hidden tokens alone where the head allows it."""
        if self.selected is not None:
            self.selected.choose(model)

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [M, V] in fp32 of the hidden tokens, and what they are [M]."""
        rows = batch[TARGET_ROWS]
        if self.selected is None:
            logits = self.outputs(model, batch).logits.flatten(0, 1)[rows].float()
        else:
            logits = self.selected.logits(model, tell_documents(model, self.inputs(batch)), rows)
        return logits, batch["targets"].flatten()[rows]

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The cross-entropies of the hidden tokens."""
        return Loss(nn.functional.cross_entropy(*self._logits(model, batch), reduction="sum"))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss, hidden tokens, and those told right."""
        logits, wanted = self._logits(model, batch)
        return {
            "loss": float(nn.functional.cross_entropy(logits, wanted, reduction="sum")),
            "targets": float(len(wanted)),
            "correct": float((logits.argmax(-1) == wanted).sum()),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per hidden token, its exponential, and the share told right."""
        count = max(1.0, sums["targets"])
        loss = sums["loss"] / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / count}

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """task.sample_prompt with the likeliest token in the place of the mask."""
        prompt = self.options.sample_prompt
        if prompt is None:
            return None
        ids = np.array(self.tokenizer(prompt)["input_ids"], np.int32)
        batch = padded(self.tokenizer, [{"input_ids": ids}])
        device = next(model.parameters()).device
        logits = self.outputs(model, {name: values.to(device) for name, values in batch.items()}).logits[0]
        best = logits[int(np.flatnonzero(ids == self.tokenizer.mask_token_id)[0])].argmax()
        return str(prompt).replace(str(self.tokenizer.mask_token), self.tokenizer.decode([int(best)]).strip())
