"""Sentence embeddings: texts that belong together get similar vectors.

Each anchor is compared with the texts of the whole global batch, whatever ranks and micro-batches compute them: they are all
embedded once without gradients (`look`), the gradient of the loss by each vector follows (`compare`), and the second pass
takes it on to the weights, one micro-batch at a time (GradCache, Gao et al. 2021, arXiv 2101.06983).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerBase

from toolkit.data.example import IGNORED, Array, Example, Row
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.tokens import cut
from toolkit.errors import DataError, ModelError, RecipeError, plural
from toolkit.models.attention import DOCUMENT_LENGTHS, Documents, tell_documents
from toolkit.models.pooler import freeze_pooler
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import SentenceEmbedding
from toolkit.tasks.base import Batch, Loss, Sums, Task
from toolkit.tasks.columns import text_of, value_of
from toolkit.tasks.metrics.labels import number_scores
from toolkit.tasks.padded import check_padding, closing_tokens, padded
from toolkit.tasks.similarity.contrast import contrastive_losses, cosent_loss, pair_cosines, ranks
from toolkit.tasks.similarity.sentence_transformers import module_files

SCORES = "scores"
EMBEDDINGS = "embeddings"
LOSSES, GRADIENTS = "embedding_losses", "embedding_gradients"
"""Names of what `compare` adds to a batch."""


class SentenceEmbeddingTask(Task):
    """Rows hold an anchor and a positive, perhaps a negative; or two texts and how similar they are."""

    auto_class = AutoModel
    reads_padding = True
    may_lack_head = True
    looks = True
    legend = "each text as the model reads it"

    def __init__(self, options: SentenceEmbedding, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        check_padding(tokenizer)
        self.group = 0
        """Examples of a step: held-out losses are taken of as many together."""

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Refuse encoder-decoders, and batches in which nothing can be compared."""
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{config.model_type} is an encoder with a decoder, with task.name={self.options.name!r}",
                expected="a model with one stack of layers: a text has one vector",
                do="choose an encoder or a decoder",
            )
        self.group = batch.global_size
        if batch.global_size == 1 and self.options.objective != "mse" and self.options.negative_field is None:
            raise RecipeError(
                f"batch.global_size=1 with task.objective={self.options.objective!r}",
                expected="several examples in a batch: each is compared with the others",
                do="raise batch.global_size",
            )

    # One row, one example

    def encode(self, row: Row) -> list[Example]:
        """input_ids of all texts one after the other; lengths [K] of each; closing [K], special tokens at its end; labels [1]."""
        options = self.options
        texts = [(options.anchor_field, "anchor_field", options.anchor_prefix)]
        texts.append((options.positive_field, "positive_field", options.positive_prefix))
        if options.negative_field is not None:
            texts.append((options.negative_field, "negative_field", options.positive_prefix))
        found = [self._encoded(prefix + text_of(row, column, field)) for column, field, prefix in texts]
        example = {
            "input_ids": np.concatenate([ids for ids, _ in found]),
            "lengths": np.array([len(ids) for ids, _ in found], np.int32),
            "closing": np.array([closing for _, closing in found], np.int32),
            "labels": np.zeros(1, np.int32),
        }
        if options.score_field is not None:
            example[SCORES] = np.array([self._score(row, options.score_field)], np.float32)
        return [example]

    def _encoded(self, text: str) -> tuple[Array, int]:
        encoded = self.tokenizer(text, truncation=False, verbose=False, return_special_tokens_mask=True)
        if not encoded["input_ids"]:
            raise DataError(f"{text!r:.60} has no token", expected="text that the tokenizer knows", do="remove the row")
        return np.array(encoded["input_ids"], np.int32), closing_tokens(encoded["special_tokens_mask"])

    def _score(self, row: Row, column: str) -> float:
        value = value_of(row, column, "score_field", "a number")
        try:
            score = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            score = math.nan
        least = -1.0 if self.options.objective == "mse" else -math.inf
        if not (math.isfinite(score) and least <= score <= -least):
            raise DataError(
                f"task.score_field={column!r} gives {value!r:.60}",
                expected="a number" + (" from -1 to 1, as cosines are" if least == -1.0 else ""),
                do="bring the scores to that scale (those from 0 to 5 are divided by 5), or set task.objective='cosent'"
                if math.isfinite(score)
                else "write the score as a number, or remove the row",
            )
        return score

    def columns(self, row: Row) -> Collection[str]:
        """Those of the texts, and of the score."""
        options = self.options
        names = (options.anchor_field, options.positive_field, options.negative_field, options.score_field)
        return [name for name in names if name is not None]

    def describe(self) -> dict[str, Any]:
        """What changes the tokens: neither how vectors are made of them, nor how they are compared."""
        found = super().describe()
        return {name: value for name, value in found.items() if name not in type(self.options).identity}

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """Texts of at most `capacity` tokens each."""
        longest = int(example["lengths"].max())
        if longest <= capacity:
            return [example]
        if overlong == "truncate":
            counts.truncated += 1
            closings = example["closing"].tolist()
            shortened = [cut(ids, capacity, closing) for ids, closing in zip(_texts(example), closings, strict=True)]
            return [
                example
                | {"input_ids": np.concatenate(shortened), "lengths": np.array(list(map(len, shortened)), np.int32)}
            ]
        if overlong == "drop":
            counts.dropped += 1
            return []
        raise DataError(
            f"a text has {longest} tokens and batch.sequence_length is {capacity}",
            expected="texts that fit, since data.overlong='error'",
            do="raise batch.sequence_length, or set data.overlong to 'truncate' or 'drop'",
        )

    def show(self, example: Example) -> Shown:
        """Each text on a line."""
        decode = self.tokenizer.decode
        lines = [decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in _texts(example)]
        score = f", score {float(example[SCORES][0]):g}" if SCORES in example else ""
        lengths = " + ".join(map(str, example["lengths"].tolist()))
        return Shown(
            f"{lengths} = {plural(self.size(example), 'token')}{score}", [(line + "\n", False) for line in lines]
        )

    # A batch

    def stand_in(self, length: int, config: Any) -> Example:
        """Two texts of `length` tokens, and a third where negatives are read."""
        texts = 2 + (self.options.negative_field is not None)
        found = {"input_ids": np.zeros(texts * length, np.int32), "lengths": np.full(texts, length, np.int32)}
        return {**found, "labels": np.zeros(1, np.int32), SCORES: np.zeros(1)}

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids, attention_mask [B K, T] of the texts, those of an example together; labels [B]; scores [B] of scored pairs."""
        examples = [sequence[0] for sequence in sequences]
        batch = padded(self.tokenizer, [{"input_ids": ids} for example in examples for ids in _texts(example)])
        batch["labels"] = torch.tensor([int(example["labels"][0]) for example in examples])
        if self.options.score_field is not None:
            batch[SCORES] = torch.tensor([float(example[SCORES][0]) for example in examples])
        return batch

    def count(self, batch: Batch) -> int:
        """Examples (fillers of an evaluation are none)."""
        return int((batch["labels"] != IGNORED).sum())

    # The model

    def prepare(self, model: nn.Module) -> None:
        """Leave a pooler as it is: no vector depends on it."""
        freeze_pooler(model)

    def embeddings(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The vectors of the texts of each example, [B, K, D] fp32.

        Anchors by themselves, positives by themselves: a title is not filled up to the length of a page.
        """
        number = len(batch["input_ids"]) // len(batch["labels"])
        return torch.stack([self._vectors(model, batch, slice(text, None, number)) for text in range(number)], dim=1)

    def _vectors(self, model: nn.Module, batch: Batch, rows: slice) -> torch.Tensor:
        """The vectors of those texts of a batch, [B, D] fp32."""
        lengths = [length for length, _ in batch[DOCUMENT_LENGTHS].tolist()[rows]]
        longest = max(lengths)
        texts = {name: batch[name][rows, :longest] for name in ("input_ids", "attention_mask")}
        documents = Documents([[length, longest - length] for length in lengths])
        told = tell_documents(model, {**texts, DOCUMENT_LENGTHS: documents})
        hidden: torch.Tensor = model(**told).last_hidden_state.float()
        mask = texts["attention_mask"].unsqueeze(-1).float()
        if self.options.pooling == "mean":
            vectors = (hidden * mask).sum(1) / mask.sum(1)
        elif self.options.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            last = texts["attention_mask"].sum(1) - 1
            vectors = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return nn.functional.normalize(vectors, dim=-1) if self.options.normalize else vectors

    @property
    def compares(self) -> bool:
        """Whether an example's loss depends on the others: not where each pair has a cosine to reach."""
        return bool(self.options.objective != "mse")

    def look(self, model: nn.Module, batch: Batch) -> Batch:
        """The vectors of a micro-batch, and its scores."""
        found = {EMBEDDINGS: self.embeddings(model, batch)}
        return found | {SCORES: batch[SCORES]} if SCORES in batch else found

    def compare(self, found: Batch) -> Batch:
        """Each example's loss among those of the global batch [N], and the gradient of their sum by its vectors [N, K, D]."""
        with torch.enable_grad():
            vectors = found[EMBEDDINGS].detach().requires_grad_()
            losses = self._losses(vectors, found.get(SCORES))
            (gradients,) = torch.autograd.grad(losses.sum(), vectors)
        return {LOSSES: losses.detach(), GRADIENTS: gradients}

    def _losses(self, vectors: torch.Tensor, scores: torch.Tensor | None) -> torch.Tensor:
        """[N]. What pairs have in common is the loss of each of them: its mean is the same."""
        if scores is None:
            return contrastive_losses(vectors, self.options.temperature)
        if self.options.objective == "mse":
            return (pair_cosines(vectors) - scores).square()
        return cosent_loss(pair_cosines(vectors), scores, self.options.temperature).expand(len(vectors))

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The examples' losses; their gradient by the vectors is that of the whole global batch's."""
        vectors = self.embeddings(model, batch)
        if not self.compares:
            losses = self._losses(vectors, batch[SCORES])
            return Loss(losses.where(batch["labels"] != IGNORED, 0.0).sum())
        carried = (vectors * batch[GRADIENTS]).sum()
        return Loss(batch[LOSSES].sum() + carried - carried.detach())

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Of a micro-batch by itself."""
        real = batch["labels"] != IGNORED
        return self.tally({name: values[real] for name, values in self.look(model, batch).items()})

    def tally(self, found: Mapping[str, torch.Tensor]) -> Sums:
        """Loss, in groups as large as a global batch, and what says how near the texts of each example are."""
        vectors, scores = found[EMBEDDINGS], found.get(SCORES)
        size = max(1, self.group)
        parts = [slice(start, start + size) for start in range(0, len(vectors), size)]
        losses = [self._losses(vectors[part], None if scores is None else scores[part]) for part in parts]
        sums = {"loss": float(torch.cat(losses).double().sum()), "targets": float(len(vectors))}
        if scores is None:
            places = ranks(vectors).double()
            return {**sums, "first": float((places == 1).sum()), "reciprocal": float((1.0 / places).sum())}
        pairs = zip(pair_cosines(vectors).tolist(), scores.tolist(), strict=True)
        records = [{"prediction": cosine, "reference": score} for cosine, score in pairs]
        return {**sums, "spearman": len(records) * number_scores(records)["spearman"]}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss; accuracy_at_1 and mrr over all held-out texts; or spearman."""
        count = max(1.0, sums["targets"])
        names = {"accuracy_at_1": "first", "mrr": "reciprocal"}
        if self.options.objective != "contrastive":
            names = {"spearman": "spearman"}
        return {"loss": sums["loss"] / count, **{name: sums[key] / count for name, key in names.items()}}

    def files(self, config: Any, batch: BatchSizes) -> dict[str, Any]:
        """Those by which sentence-transformers makes the same vectors of the export."""
        options = self.options
        return module_files(
            config.get_text_config().hidden_size,
            pooling=options.pooling,
            normalize=options.normalize,
            longest=batch.sequence_length,
            prompts={"query": options.anchor_prefix, "document": options.positive_prefix},
        )


def _texts(example: Example) -> list[Array]:
    """The token ids of each text."""
    return np.split(example["input_ids"], np.cumsum(example["lengths"])[:-1])
