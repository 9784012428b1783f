"""What tasks of an encoder and a decoder share: the decoder predicts each token of a target from those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.data.example import IGNORED, Example
from toolkit.models.heads import TARGET_ROWS, target_rows, token_loss, use_loss_head
from toolkit.tasks.base import Batch, Loss, Sums, Task


class DecoderTask(Task):
    """Examples have labels [T]; batches have labels [B, T], -100 behind a target's end, and target_rows [M]."""

    def encoder_inputs(self, model: Any, batch: Batch) -> Batch:
        """What the encoder reads of `batch`, by the names of the model's inputs."""
        raise NotImplementedError

    def targets_of(self, examples: Sequence[Example]) -> Batch:
        """What `examples` bring into a batch for the decoder."""
        labels = padded_labels(examples)
        return {"labels": labels, TARGET_ROWS: target_rows(labels)}

    def count(self, batch: Batch) -> int:
        """Tokens of targets."""
        return len(batch[TARGET_ROWS])

    def prepare(self, model: nn.Module) -> None:
        """Let the output head compute the loss itself, so that the logits never exist in full."""
        use_loss_head(model)

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The losses of the targets' tokens."""
        return Loss(self._loss(model, batch, gradient_scale, self.options.label_smoothing))

    def _loss(self, model: Any, batch: Batch, gradient_scale: float, label_smoothing: float) -> torch.Tensor:
        # What is behind a target's end needs no mask: a decoder sees what comes before alone.
        return token_loss(
            model,
            {**self.encoder_inputs(model, batch), "decoder_input_ids": decoder_inputs(model, batch["labels"])},
            batch["labels"],
            label_smoothing=label_smoothing,
            gradient_scale=gradient_scale,
            rows=batch[TARGET_ROWS],
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Token loss (never smoothed) and tokens."""
        return {"loss": float(self._loss(model, batch, 1.0, 0.0)), "targets": self.count(batch)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per token, and its exponential."""
        loss = sums["loss"] / max(1.0, sums["targets"])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def padded_labels(examples: Sequence[Example]) -> torch.Tensor:
    """The labels of `examples` [B, T], -100 behind the end of each."""
    found = [torch.from_numpy(example["labels"].astype(np.int64)) for example in examples]
    return nn.utils.rnn.pad_sequence(found, True, IGNORED)


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """What the decoder of `model` reads, [B, T], to predict labels [B, T]: as the model shifts them itself."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        return shift(labels)  # type: ignore[no-any-return]
    # A few architectures do so inside their forward pass alone, and all of these in this way (M2M100, NLLB).
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = model.config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED, model.config.pad_token_id)
