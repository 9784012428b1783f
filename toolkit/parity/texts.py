"""The judge of the tasks of encoders: each text by itself, without padding, mask or pack, and the textbook's formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.parity.reference import Batch
from toolkit.recipe import Task

TOKENS = ("input_ids", "token_type_ids", "targets")
"""What of a batch has a number for each token."""


@dataclass(frozen=True)
class TextJudge:
    """Losses of masked_lm, sequence_classification, token_classification and question_answering, in fp64."""

    options: Task

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Nothing to look at."""

    def count(self, batch: Batch) -> int:
        """Hidden or labelled tokens; texts; windows."""
        if "targets" in batch:
            return int(batch["targets"].ne(-100).sum())
        answers = batch["spans"][:, 0] if "spans" in batch else batch["labels"]
        return len(answers) if answers.is_floating_point() else int(answers.ne(-100).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the targets of a micro-batch, 0-dim fp64."""
        found = [self._loss(model, text, row, batch) for row, text in _texts(batch)]
        return torch.stack(found).sum()

    def _loss(self, model: nn.Module, text: Batch, row: int, batch: Batch) -> Tensor:
        known = {name: text[name] for name in ("input_ids", "token_type_ids") if name in text}
        if getattr(model.config, "type_vocab_size", 2) < 2:
            known.pop("token_type_ids", None)
        output: Any = model(**known)
        smoothing = getattr(self.options, "label_smoothing", 0.0)
        if "spans" in batch:
            start, end = batch["spans"][row]
            chances = [_log_softmax(logits[0]) for logits in (output.start_logits, output.end_logits)]
            both: Tensor = chances[0][start] + chances[1][end]
            return -both / 2
        logits = output.logits[0].double()
        if "targets" in text:
            targets = text["targets"][0]
            return _cross_entropy(logits[targets != -100], targets[targets != -100], smoothing)
        wanted = batch["labels"][row]
        if not wanted.is_floating_point():
            return _cross_entropy(logits[None], wanted[None], smoothing)
        if wanted.dim() == 0:
            return torch.square(logits[0] - wanted.double())
        chance = torch.sigmoid(logits)
        return -torch.where(wanted > 0.5, chance.log(), (1.0 - chance).log()).mean()


def _texts(batch: Batch) -> Iterator[tuple[int, Batch]]:
    """Every text of `batch` by itself, [1, T] each, with the row that it is in; padding is none."""
    ends = batch["attention_mask"].sum(1) if "attention_mask" in batch else None
    for row, lengths in enumerate(batch["document_lengths"].tolist()):
        start = 0
        for length in lengths:
            part = {name: batch[name][row : row + 1, start : start + length] for name in TOKENS if name in batch}
            if length and (ends is None or start < int(ends[row])):
                yield row, part
            start += length


def _log_softmax(logits: Tensor) -> Tensor:
    logits = logits.double()
    return logits - logits.exp().sum().log()


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    chances = logits - logits.exp().sum(-1, keepdim=True).log()
    right = chances.gather(-1, targets[:, None])[:, 0]
    return -((1.0 - smoothing) * right + smoothing * chances.mean(-1)).sum()
