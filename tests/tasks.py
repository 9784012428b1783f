"""One minimal task for each kind of head: a padded batch, what of it the model is called with, and a loss in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from tests.architectures import VOCABULARY
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor, tell_documents
from toolkit.models.ties import base_first

Batch = dict[str, Tensor]

LENGTHS = (12, 7, 9)
"""Tokens of the rows of a batch; the others are padding."""

CLASSES = 3

ANSWERS = ("labels", "targets", "start_positions", "end_positions")
"""What of a batch only the loss reads."""


def inputs_of(batch: Batch) -> Batch:
    """What the model is called with."""
    return {name: values for name, values in batch.items() if name not in ANSWERS}


def count_of(batch: Batch) -> int:
    """Targets of a batch."""
    return int((next(batch[name] for name in ANSWERS if name in batch) != -100).sum())


def outputs_of(model: nn.Module, batch: Batch) -> Any:
    return model(**tell_documents(model, inputs_of(batch)))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum"
    )


def labels_loss(model: nn.Module, batch: Batch, gradient_scale: float = 1.0) -> Tensor:
    """One class per text or per token."""
    return cross_entropy(outputs_of(model, batch).logits, batch["labels"])


def masked_loss(model: nn.Module, batch: Batch, gradient_scale: float = 1.0) -> Tensor:
    return cross_entropy(outputs_of(model, batch).logits, batch["targets"])


def span_loss(model: nn.Module, batch: Batch, gradient_scale: float = 1.0) -> Tensor:
    found = outputs_of(model, batch)
    start, end = (
        cross_entropy(logits, batch[name])
        for logits, name in ((found.start_logits, "start_positions"), (found.end_logits, "end_positions"))
    )
    return start + end


def per_text(tokens: Tensor, real: Tensor, draw: Callable[[int, int], Tensor]) -> Batch:
    return {"labels": draw(0, CLASSES)[:, 0]}


def per_token(tokens: Tensor, real: Tensor, draw: Callable[[int, int], Tensor]) -> Batch:
    return {"labels": draw(0, CLASSES).where(real, -100)}


def some_tokens(tokens: Tensor, real: Tensor, draw: Callable[[int, int], Tensor]) -> Batch:
    return {"targets": draw(3, VOCABULARY).where(real & (draw(0, 3) == 0), -100)}


def span(tokens: Tensor, real: Tensor, draw: Callable[[int, int], Tensor]) -> Batch:
    # -100 in one row: a question without an answer here.
    starts = torch.tensor([2, -100, 4])
    return {"start_positions": starts, "end_positions": torch.where(starts < 0, starts, starts + 2)}


def answer(tokens: Tensor, real: Tensor, draw: Callable[[int, int], Tensor]) -> Batch:
    """Targets of 8 tokens, and what the decoder reads: the same, one place later."""
    real = torch.arange(8) < torch.tensor([8, 5, 6]).unsqueeze(1)
    targets = draw(3, VOCABULARY)[:, :8]
    shifted = torch.cat([torch.full((3, 1), 2), targets[:, :-1].where(real[:, :-1], 0)], dim=1)
    return {
        "labels": targets.where(real, -100),
        "decoder_input_ids": shifted,
        "decoder_attention_mask": real.long(),
    }


@dataclass(frozen=True)
class Kind:
    """A kind of head."""

    auto_class: Any
    mapping: str
    """transformers' table of the architectures that have it."""
    loss: Callable[..., Tensor]
    answers: Callable[[Tensor, Tensor, Callable[[int, int], Tensor]], Batch]
    fields: dict[str, Any]
    """Of the model's config."""
    without_effect: tuple[str, ...] = ()
    """Parameters whose gradient is zero: what is computed for them is rounding alone."""

    def architectures(self) -> set[str]:
        return set(getattr(modeling_auto, self.mapping))

    def batch(self, seed: int = 1) -> Batch:
        """input_ids, attention_mask, document_lengths and answers of three rows."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(LENGTHS), max(LENGTHS))

        def draw(low: int, high: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        real = torch.arange(shape[1]) < torch.tensor(LENGTHS).unsqueeze(1)
        tokens = draw(3, VOCABULARY).where(real, 0)
        documents = lengths_tensor([[length, shape[1] - length] for length in LENGTHS])
        rows = {"input_ids": tokens, "attention_mask": real.long(), DOCUMENT_LENGTHS: documents}
        return rows | self.answers(tokens, real, draw)


KINDS = {
    "sequence_classification": Kind(
        AutoModelForSequenceClassification,
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        labels_loss,
        per_text,
        {"num_labels": CLASSES},
    ),
    "token_classification": Kind(
        AutoModelForTokenClassification,
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        labels_loss,
        per_token,
        {"num_labels": CLASSES, "classifier_dropout": 0.0},
    ),
    "masked_lm": Kind(AutoModelForMaskedLM, "MODEL_FOR_MASKED_LM_MAPPING_NAMES", masked_loss, some_tokens, {}),
    "question_answering": Kind(
        AutoModelForQuestionAnswering,
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        span_loss,
        span,
        {"num_labels": 2},
        ("qa_outputs.bias", "classifier.bias"),  # adds the same to the scores of all tokens
    ),
    "seq2seq": Kind(AutoModelForSeq2SeqLM, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", labels_loss, answer, {}),
}
"""By the name of the task."""


def whole_model(kind: Kind, config: Any) -> nn.Module:
    """In fp32 without dropout; no weight is left at zero or one, where a fault could hide."""
    torch.manual_seed(0)
    model: nn.Module = kind.auto_class.from_config(config, dtype=torch.float32)
    base_first(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.05))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()
