"""The judge of sequence-to-sequence learning: each pair of texts by itself, without padding and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.parity.reference import Batch


@dataclass(frozen=True)
class PairJudge:
    """Mean cross-entropy of the targets' tokens, in fp64, from the model's own full logits."""

    label_smoothing: float = 0.0

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Nothing to look at."""

    def count(self, batch: Batch) -> int:
        """Tokens of targets."""
        return int(batch["labels"].ne(-100).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the targets' tokens of a micro-batch, 0-dim fp64."""
        found = []
        for source, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            target = labels[labels != -100]
            config: Any = model.config
            begun = torch.cat([target.new_tensor([config.decoder_start_token_id]), target[:-1]])
            logits = model(input_ids=source[mask == 1][None], decoder_input_ids=begun[None]).logits[0].double()
            chances = logits.log_softmax(-1)
            right = chances.gather(1, target[:, None])[:, 0]
            found.append(-((1.0 - self.label_smoothing) * right + self.label_smoothing * chances.mean(-1)).sum())
        return torch.stack(found).sum()
