"""The judge of tasks that learn from preferences: every answer in a forward pass of its own, formulas as the papers write them.

Of a micro-batch only the tokens are taken, and which of them belong to answers. The reference is a second model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.attention import DOCUMENT_LENGTHS

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Text:
    """One prompt with its answer."""

    tokens: Tensor
    """[T]"""
    answer: Tensor
    """[T] bool: the tokens of the answer that count."""


def texts_of(batch: Batch) -> list[list[Text]]:
    """The texts in each row of `batch`, without padding, which predicts nothing."""
    rows = []
    for tokens, targets, lengths in zip(batch["input_ids"], batch["targets"], batch[DOCUMENT_LENGTHS], strict=True):
        pieces = zip(
            *(torch.split(row[: int(lengths.sum())], lengths.tolist()) for row in (tokens, targets)), strict=True
        )
        # A position predicts the token after it.
        rows.append([Text(ids, (after != -100).roll(1)) for ids, after in pieces if (after != -100).any()])
    return rows


def log_probability(model: nn.Module, text: Text) -> Tensor:
    """Of the answer given the prompt, 0-dim fp64."""
    logits: Tensor = model(input_ids=text.tokens.unsqueeze(0), use_cache=False).logits[0].double()
    each = logits[:-1].log_softmax(-1).gather(1, text.tokens[1:].unsqueeze(1)).squeeze(1)
    return each[text.answer[1:]].sum()


def log_sigmoid(value: Tensor) -> Tensor:
    """log(1 / (1 + exp(-value)))."""
    return -(1.0 + torch.exp(-value)).log()


class PreferenceJudge:
    """Losses of the task `options` (a section of the recipe), for a model that is `first` before any step."""

    def __init__(self, options: Any, first: nn.Module) -> None:
        self.options: Any = options
        self.first = copy.deepcopy(first).eval()
        self.divergence = 0.0

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Look at a global batch before it is trained."""
        if self.options.name != "kto":
            return
        ratios = []
        with torch.no_grad():
            for row in (row for batch in micro_batches for row in texts_of(batch) if len(row) > 1):
                for prompt, other in zip(row, [row[-1], *row[:-1]], strict=True):
                    start, from_ = (int(text.answer.nonzero()[0]) for text in (prompt, other))
                    tokens = torch.cat([prompt.tokens[:start], other.tokens[from_:]])
                    answer = torch.cat([torch.zeros(start, dtype=torch.bool), other.answer[from_:]])
                    mixed = Text(tokens, answer)
                    ratios.append(float(log_probability(model, mixed) - log_probability(self.first, mixed)))
        self.divergence = max(0.0, sum(ratios) / max(1, len(ratios)))

    def count(self, batch: Batch) -> int:
        """Pairs, or answers."""
        texts = sum(map(len, texts_of(batch)))
        return texts if self.options.name == "kto" else texts // 2

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the pairs or answers of a micro-batch, 0-dim fp64."""
        texts = [text for row in texts_of(batch) for text in row]
        if self.options.name == "kto":
            answers = zip(texts, batch["desirable"].tolist(), strict=True)
            return torch.stack([self._judged(model, text, bool(good)) for text, good in answers]).sum()
        pairs = zip(texts[::2], texts[1::2], strict=True)
        margins = batch["margin"].tolist() if "margin" in batch else [0.0] * (len(texts) // 2)
        return torch.stack([self._pair(model, *pair, gap) for pair, gap in zip(pairs, margins, strict=True)]).sum()

    def _ratio(self, model: nn.Module, text: Text) -> Tensor:
        with torch.no_grad():
            before = log_probability(self.first, text)
        return log_probability(model, text) - before

    def _judged(self, model: nn.Module, text: Text, is_good: bool) -> Any:
        options = self.options
        distance = options.beta * (self._ratio(model, text) - self.divergence)
        if is_good:
            return options.desirable_weight * (1.0 - torch.sigmoid(distance))
        return options.undesirable_weight * (1.0 - torch.sigmoid(-distance))

    def _pair(self, model: nn.Module, chosen: Text, rejected: Text, gap: float) -> Any:
        options = self.options
        if options.name == "reward_model":
            one, other = (
                model(input_ids=text.tokens.unsqueeze(0)).logits[0, 0].double() for text in (chosen, rejected)
            )
            return -log_sigmoid(one - other - gap) + options.centering * (one + other) ** 2
        if options.name == "dpo":
            return self._dpo(model, chosen, rejected)
        one, other = (log_probability(model, text) / text.answer.sum() for text in (chosen, rejected))
        if options.name == "simpo":
            return -log_sigmoid(options.beta * one - options.beta * other - options.gamma)
        odds = [torch.exp(mean) / (1.0 - torch.exp(mean)) for mean in (one, other)]
        return -one - options.beta * log_sigmoid(torch.log(odds[0] / odds[1]))

    def _dpo(self, model: nn.Module, chosen: Text, rejected: Text) -> Any:
        options, smoothing = self.options, self.options.label_smoothing
        one, other = (self._ratio(model, text) for text in (chosen, rejected))
        if options.loss == "ipo":
            return (one / chosen.answer.sum() - other / rejected.answer.sum() - 1.0 / (2.0 * options.beta)) ** 2
        margin = options.beta * (one - other)
        if options.loss == "hinge":
            return (1.0 - margin).clamp(min=0.0)
        clean, flipped = -log_sigmoid(margin), -log_sigmoid(-margin)
        if options.loss == "robust":
            return ((1.0 - smoothing) * clean - smoothing * flipped) / (1.0 - 2.0 * smoothing)
        return (1.0 - smoothing) * clean + smoothing * flipped
