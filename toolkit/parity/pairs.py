"""The judges of tasks of pairs of texts: each text by itself, without padding and mask; a global batch as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.parity.reference import Batch
from toolkit.recipe import SentenceEmbedding


@dataclass(frozen=True)
class TargetJudge:
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


@dataclass
class EmbeddingJudge:
    """Losses of sentence embeddings, in fp64: all texts of a step are embedded in one graph, as the formulas say."""

    options: SentenceEmbedding
    _rest: list[Batch] = field(default_factory=list)
    """Micro-batches of the step that are not yet asked for."""

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """The batches that belong together."""
        self._rest = list(micro_batches)

    def count(self, batch: Batch) -> int:
        """Examples."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the whole step when its first micro-batch is asked for, and nothing for the others; 0-dim fp64."""
        if not self._rest or batch is not self._rest[0]:
            return next(model.parameters()).sum().double() * 0.0
        vectors = torch.cat([self._vectors(model, part) for part in self._rest])
        scores = torch.cat([part["scores"] for part in self._rest]) if "scores" in batch else None
        self._rest = []
        first, others = vectors[:, 0], vectors[:, 1:]
        if self.options.objective == "contrastive":
            found = []
            for index, anchor in enumerate(first):
                similarities = torch.stack([(other * anchor).sum() for other in others.reshape(-1, anchor.shape[0])])
                own = (others[index, 0] * anchor).sum()
                found.append(
                    (similarities / self.options.temperature).exp().sum().log() - own / self.options.temperature
                )
            return torch.stack(found).sum()
        assert scores is not None, "scored pairs"
        cosines: Tensor = (first * others[:, 0]).sum(-1) / (first.norm(dim=-1) * others[:, 0].norm(dim=-1))
        if self.options.objective == "mse":
            return (cosines - scores.double()).square().sum()
        total = torch.ones((), dtype=torch.float64)
        for i, one in enumerate(scores.tolist()):
            for j, other in enumerate(scores.tolist()):
                if one > other:
                    total = total + ((cosines[j] - cosines[i]) / self.options.temperature).exp()
        return total.log() * len(scores)

    def _vectors(self, model: nn.Module, batch: Batch) -> Tensor:
        """[B, K, D] fp64."""
        found = []
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            hidden = model(input_ids=ids[mask == 1][None]).last_hidden_state[0].double()
            pooled: dict[str, Tensor] = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}
            vector = pooled[self.options.pooling]
            found.append(vector / vector.norm() if self.options.normalize else vector)
        return torch.stack(found).view(len(batch["labels"]), -1, found[0].shape[0])
