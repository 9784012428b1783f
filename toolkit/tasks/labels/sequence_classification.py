"""Sequence classification: a class, several, or a number per text or pair of texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from toolkit.data import tokens
from toolkit.data.example import IGNORED, Example, Row
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.column_names import ColumnMissing
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, RecipeError, first_few, nearest, plural
from toolkit.models.decoding import Generate
from toolkit.recipe import SequenceClassification
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Loss, Record, Sums
from toolkit.tasks.columns import checked_text
from toolkit.tasks.labels.kinds.base import LabelKind
from toolkit.tasks.labels.kinds.choice import kind_of
from toolkit.tasks.labels.kinds.one_class import OneClass
from toolkit.tasks.metrics.labels import confusion
from toolkit.tasks.padded import TOKEN_TYPES, EncoderTask, check_padding, closing_tokens, has_token_types, padded

TEXTS = "texts"
"""Which of two texts each token is of, 0 or 1; -1 for special tokens."""
PER_TOKEN = ("input_ids", TOKEN_TYPES, TEXTS)

Places = NDArray[np.signedinteger[Any]]


class SequenceClassificationTask(EncoderTask):
    """Rows hold a text, or two, and a label; what a label is decides `toolkit.tasks.labels.kinds.choice`."""

    auto_class = AutoModelForSequenceClassification
    makes_records = True
    tells_at_once = True
    reads_padding = True  # decoders classify the last real token
    legend = "each text as the model reads it, with its label: of classes their number or names"

    def __init__(self, options: SequenceClassification, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        self.asked = options
        self.kind: LabelKind = OneClass(options)
        check_padding(tokenizer)
        if options.second_text_field is not None and not tokenizer.is_fast:
            raise RecipeError(
                f"task.second_text_field={options.second_text_field!r}: the tokenizer at {tokenizer.name_or_path!r} does not "
                "say which text a token is of",
                expected="a fast tokenizer (tokenizer.json)",
                do="add tokenizer.json to the checkpoint",
            )

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the outputs; none where a number is learned."""
        found: list[str] = getattr(self.kind, "classes", [])
        return found

    # The rows as a whole

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Find what the labels are, and of classes which; those of the checkpoint's head where it has one that fits."""
        self.kind = kind_of(self.asked, rows)
        self.kind.fit(rows, checkpoint, fields, row_name)
        self.options = self.options.model_copy(update={"problem_type": self.kind.problem_type})

    def check(self, rows: Iterable[Row], row_name: RowName) -> None:
        """Raise DataError for held-out rows without labels."""
        self.kind.check(rows, row_name)

    @property
    def new_head(self) -> bool:
        """Whether the output layer starts at random values, whatever the checkpoint has."""
        return self.kind.new_head

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """What the labels are, and what the checkpoint's head becomes."""
        return self.kind.remarks()

    def config_overrides(self) -> dict[str, Any]:
        """The classes, so that the export knows their names, and what an output means."""
        return self.kind.config()

    def describe(self) -> dict[str, Any]:
        """The columns read and the classes."""
        return {**super().describe(), **self.kind.describe()}

    # One row

    def encode(self, row: Row) -> list[Example]:
        """One example: the text (or both) between the tokenizer's own special tokens, and the label."""
        fields = ("text_field", "second_text_field")[: 1 if self.options.second_text_field is None else 2]
        texts = [self._text(row, getattr(self.options, field), field) for field in fields]
        return [{**self._encoded(*texts), "labels": self.kind.label(row)}]

    def _text(self, row: Row, column: str, field: str) -> str:
        text = row.get(column)
        if isinstance(text, str):
            return checked_text(text, f"task.{field}={column!r}")
        taken = {*self.columns(row)}
        texts = [name for name, value in row.items() if isinstance(value, str) and name not in taken]
        meant = nearest(column, texts, likeness=0.0)
        raise (DataError if column in row else ColumnMissing)(
            f"task.{field}={column!r} "
            + (f"gives {text!r:.60}" if column in row else "is not there")
            + f"; the columns are {first_few(list(row))}",
            expected=f"text in task.{field}",
            do="write the value as a string, or remove the row"
            if column in row
            else f"set task.{field} to the column that holds the text" + (f", {meant[0]!r} perhaps" if meant else ""),
        )

    def _encoded(self, *texts: str) -> Example:
        encoded = self.tokenizer(*texts, truncation=False, verbose=False, return_special_tokens_mask=True)
        special = encoded["special_tokens_mask"]
        found = {"input_ids": encoded["input_ids"], "closing": [closing_tokens(special)]}
        if len(texts) > 1:
            found[TEXTS] = [-1 if number is None else number for number in encoded.sequence_ids()]
            found |= {TOKEN_TYPES: encoded[TOKEN_TYPES]} if has_token_types(self.tokenizer) else {}
        return {name: np.array(column, np.int32) for name, column in found.items()}

    def columns(self, row: Row) -> Collection[str]:
        """The texts and the label."""
        second = self.options.second_text_field
        return (self.options.text_field, *([] if second is None else [second]), *self.kind.columns())

    def targets(self, example: Example) -> int:
        """One label."""
        return 1

    def ignored(self, example: Example) -> Example:
        """The same example without a label."""
        labels = example["labels"]
        none = np.nan if labels.dtype.kind == "f" else IGNORED
        return {**example, "labels": np.full_like(labels, none)}

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """As for any text; of a pair of texts the longer one is cut first."""
        if tokens.size(example) <= capacity or overlong in ("drop", "error"):
            return tokens.fit(example, capacity, overlong, counts)
        counts.truncated += 1
        kept = _pair_kept(example[TEXTS], capacity) if TEXTS in example else _kept(example, capacity)
        return [{name: column[kept] if name in PER_TOKEN else column for name, column in example.items()}]

    def show(self, example: Example) -> Shown:
        """The text, and its label."""
        text = self.tokenizer.decode(
            example["input_ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        heading = f"{plural(tokens.size(example), 'token')}, label {self.kind.shown(example['labels'])}"
        return Shown(heading, [(text, False)])

    # A batch

    def stand_in(self, length: int, config: Any) -> Example:
        """A text, and a label of the kind that the data has."""
        return {"input_ids": np.zeros(length, np.int32), "labels": np.zeros(1, np.int32)}

    def assume(self) -> None:
        """Two classes, as good as any number of them: the head is small."""
        self.kind = OneClass(self.asked)
        self.kind.fit([{self.asked.label_field: number} for number in (0, 1)], None, NO_FIELDS, TRAINED)

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids and attention_mask [B, T] with T the longest text, labels [B] or [B, N], document_lengths [B, 2].

        Of pairs token_type_ids [B, T] besides, where the tokenizer makes them.
        """
        examples = [sequence[0] for sequence in sequences]
        types = {TOKEN_TYPES: 0} if TOKEN_TYPES in examples[0] else {}
        labels = self.kind.collate([example["labels"] for example in examples])
        return {**padded(self.tokenizer, examples, types), "labels": labels}

    def count(self, batch: Batch) -> int:
        """Texts with a label (fillers of an evaluation have none)."""
        return int(_has_label(batch["labels"]).sum())

    # The model

    def _logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.outputs(model, batch).logits
        return logits.float()

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The losses of the texts: cross-entropies, means of binary ones, or squared errors."""
        return Loss(self.kind.losses(self._logits(model, batch), batch["labels"], self.options.label_smoothing))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss (never smoothed), texts, and what the kind of label adds."""
        return self._sums(self._logits(model, batch), batch["labels"])

    def _sums(self, logits: torch.Tensor, labels: torch.Tensor) -> Sums:
        return {
            "loss": float(self.kind.losses(logits, labels, 0.0)),
            "targets": float(_has_label(labels).sum()),
            **self.kind.sums(logits, labels),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per text, and what the kind of label adds."""
        texts = max(1.0, sums["targets"])
        return {"loss": sums["loss"] / texts, **self.kind.metrics(sums, texts)}

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """What the model says of each text, and its label."""
        return self.told(model, batch, examples)[1]

    def told(self, model: nn.Module, batch: Batch, examples: Sequence[Example]) -> tuple[Sums, list[Record]]:
        """The sums, and the records."""
        logits = self._logits(model, batch)
        records = [
            {"prediction": prediction, "reference": self.kind.meant(example["labels"])}
            for prediction, example in zip(map(self.kind.told, logits.cpu()), examples, strict=True)
        ]
        return self._sums(logits, batch["labels"]), records

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """What the kind of label is measured by."""
        return self.kind.score(records)

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """The confusion matrix, where there is one class per text."""
        return {"confusion_matrix": confusion(records, self.classes)} if isinstance(self.kind, OneClass) else {}

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """The class of task.sample_prompt, its classes, or its number."""
        if self.options.sample_prompt is None:
            return None
        batch = padded(self.tokenizer, [self._encoded(self.options.sample_prompt)])
        device = next(model.parameters()).device
        told = self.kind.told(self._logits(model, {key: value.to(device) for key, value in batch.items()})[0].cpu())
        return ", ".join(told) or "none" if isinstance(told, list) else str(told)


def _has_label(labels: torch.Tensor) -> torch.Tensor:
    """Which of `labels`, [B] or [B, N], are real."""
    return ~labels.view(len(labels), -1).isnan().any(1) if labels.is_floating_point() else labels != IGNORED


def _kept(example: Example, capacity: int) -> Places:
    """The first tokens of a text, and those that close it."""
    length, closing = tokens.size(example), min(int(example["closing"][0]), capacity)
    kept: Places = np.r_[: capacity - closing, length - closing : length]
    return kept


def _pair_kept(texts: Places, capacity: int) -> Places:
    """The first tokens of both texts, the longer one cut first ("longest_first" of tokenizers), and all special ones."""
    first, second = np.flatnonzero(texts == 0), np.flatnonzero(texts == 1)
    room = max(0, capacity - int((texts < 0).sum()))
    shorter = min(len(first), len(second), room // 2)
    longer = room - shorter
    sizes = (longer, shorter) if len(first) > len(second) else (shorter, longer)
    return np.sort(np.concatenate([np.flatnonzero(texts < 0), first[: sizes[0]], second[: sizes[1]]]))
