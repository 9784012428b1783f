"""Log-probabilities of whole answers, of the model in training and of the one it began with; what tasks that learn from them share.

The latter, the reference, is either part of the examples (`toolkit.train.reference` puts it there, before training), or the
same model with its adapters switched off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data import documents
from toolkit.data.example import Example
from toolkit.models.adapters import adapters_off
from toolkit.models.attention import tell_documents
from toolkit.models.heads import TARGET_ROWS, token_log_probabilities
from toolkit.models.log_probabilities import segment_sum
from toolkit.models.router_balance import REAL
from toolkit.tasks.base import Batch
from toolkit.tasks.language.language_model import LanguageModelTask
from toolkit.tasks.packed_rows import COUNTED, TARGET_DOCUMENTS, model_inputs

ANSWER_TOKENS = "answer_tokens"
"""Name in a batch: the trained tokens of each document, whichever rank has them, int64 [D]."""
REFERENCE = "reference"
"""Name in an example, float64 [n], and in a batch, float64 [D]: what the model that training began with gives."""


class Answers(NamedTuple):
    """The answers of a batch, [D] fp64 each."""

    sums: Tensor
    """Log-probabilities."""
    means: Tensor
    """Log-probabilities per token; 0 for a filler, which has no tokens."""


def answer_tokens(examples: Iterable[Example]) -> Tensor:
    """The entry ANSWER_TOKENS of a batch."""
    return torch.tensor([documents.num_trained(labels) for one in examples for _, labels in documents.apart(one)])


def references(examples: list[Example]) -> Batch:
    """The entry REFERENCE of a batch, where the examples have one for each of their documents."""
    if not examples or REFERENCE not in examples[0]:
        return {}
    return {REFERENCE: torch.from_numpy(np.concatenate([example[REFERENCE] for example in examples]))}


def answers(model: nn.Module, batch: Batch, group: Any, seen: list[Any] | None = None) -> Answers:
    """What `model` gives to the answers of `batch`, whose tokens the ranks of `group` share; what it returned goes to `seen`."""
    found = token_log_probabilities(
        model,
        tell_documents(model, model_inputs(batch)),
        batch["targets"],
        batch[TARGET_ROWS],
        see=None if seen is None else seen.append,
    )
    sums = segment_sum(found, batch[TARGET_DOCUMENTS], len(batch[ANSWER_TOKENS]), group)
    return Answers(sums, sums / batch[ANSWER_TOKENS].clamp(min=1))


def reference_sums(model: nn.Module, batch: Batch, group: Any) -> Tensor:
    """Log-probabilities [D] fp64 of the answers under the model that training began with, without gradients."""
    if REFERENCE in batch:
        return batch[REFERENCE]
    was_training = model.training
    # Without dropout, and without keeping activations for gradients that nobody takes.
    model.eval()
    try:
        with torch.no_grad(), adapters_off(model):
            return answers(model, batch, group).sums
    finally:
        model.train(was_training)


class AnswersTask(LanguageModelTask):
    """What tasks have in common that train a language model by log-probabilities of whole answers."""

    def inputs(self, batch: Batch) -> Batch:
        """Tokens, positions, and where documents end."""
        return model_inputs(batch)

    def balancing_loss(self, model: nn.Module, batch: Batch, seen: list[Any]) -> Tensor | float:
        """What is trained besides, of a training batch: the balancing loss of the routers, which `model` returned in `seen`."""
        if self.balance is None or not torch.is_grad_enabled():
            return 0.0
        added: Tensor = self.balance.added(model, seen[0].router_logits, batch[REAL], len(batch[COUNTED]))
        return added
