"""DPO, ORPO and SimPO: language models that learn from pairs which of two answers is better."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.example import Array, Example
from toolkit.recipe import DPO, ORPO, SimPO
from toolkit.tasks.base import Batch
from toolkit.tasks.packed_rows import Document, next_tokens
from toolkit.tasks.preferences import losses
from toolkit.tasks.preferences.answers import (
    ANSWER_TOKENS,
    REFERENCE,
    Answers,
    AnswersTask,
    answer_tokens,
    answers,
    reference_sums,
    references,
)
from toolkit.tasks.preferences.pairs import Compared, PairsTask


class PreferenceTask(AnswersTask, PairsTask):
    """What a language model learns from the log-probabilities that it gives to both answers."""

    def document(self, ids: Array, labels: Array) -> Document:
        """Each position is asked for the token after it, where that belongs to the answer."""
        return next_tokens(ids, labels)

    def stand_in(self, length: int, config: Any) -> Example:
        """A pair, with what the reference model gives to it where the loss reads that."""
        reference = {REFERENCE: np.zeros(2)} if self.options.reads_reference else {}
        return {**super().stand_in(length, config), **reference}

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """As of all pairs, with what routers need."""
        batch = super().collate(sequences)
        return batch | self.real_tokens(sequences, batch)

    def beside(self, examples: list[Example]) -> Batch:
        """Tokens of the answers, and what the reference gives to them."""
        return {ANSWER_TOKENS: answer_tokens(examples), **references(examples)}

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Compared, Tensor | float]:
        """The loss and the rewards of each pair, and the balancing loss of the routers."""
        seen: list[Any] = []
        compared = self.judge(model, batch, answers(model, batch, self.sequence_group, seen))
        return compared, self.balancing_loss(model, batch, seen)

    @abstractmethod
    def judge(self, model: nn.Module, batch: Batch, found: Answers) -> Compared:
        """Losses and rewards of the pairs, of whose answers `found` says the log-probabilities."""


class DPOTask(PreferenceTask):
    """Direct preference optimization, against the model that training began with."""

    options: DPO

    def reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities of both answers of each pair, [P, 2] fp64."""
        return answers(model, batch, self.sequence_group).sums.view(-1, 2)

    def judge(self, model: nn.Module, batch: Batch, found: Answers) -> Compared:
        """Rewards are beta x log(policy / reference)."""
        options = self.options
        reference = reference_sums(model, batch, self.sequence_group)
        chosen, rejected = losses.implicit_reward(found.sums, reference, options.beta).view(-1, 2).unbind(1)
        if options.loss == "ipo":
            ratios = (found.sums - reference) / batch[ANSWER_TOKENS].clamp(min=1)
            loss = losses.ipo(ratios[0::2], ratios[1::2], options.beta)
        elif options.loss == "hinge":
            loss = losses.dpo_hinge(chosen - rejected)
        elif options.loss == "robust":
            loss = losses.dpo_robust(chosen - rejected, options.label_smoothing)
        else:
            loss = losses.dpo_sigmoid(chosen - rejected, options.label_smoothing)
        return Compared(loss, chosen, rejected)


class ORPOTask(PreferenceTask):
    """Odds ratio preference optimization."""

    options: ORPO

    def judge(self, model: nn.Module, batch: Batch, found: Answers) -> Compared:
        """Rewards are beta x log-probability per token, as in TRL."""
        chosen, rejected = found.means.view(-1, 2).unbind(1)
        # A filler has no tokens, so that its mean is 0, where the odds are infinite.
        is_pair = batch[ANSWER_TOKENS].view(-1, 2).all(1)
        chosen, rejected = (torch.where(is_pair, mean, -1.0) for mean in (chosen, rejected))
        beta = self.options.beta
        return Compared(losses.orpo(chosen, rejected, beta), beta * chosen, beta * rejected)


class SimPOTask(PreferenceTask):
    """Simple preference optimization."""

    options: SimPO

    def judge(self, model: nn.Module, batch: Batch, found: Answers) -> Compared:
        """Rewards are beta x log-probability per token."""
        chosen, rejected = found.means.view(-1, 2).unbind(1)
        loss = losses.simpo(chosen, rejected, self.options.beta, self.options.gamma)
        return Compared(loss, self.options.beta * chosen, self.options.beta * rejected)
