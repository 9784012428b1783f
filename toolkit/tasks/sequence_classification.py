"""Sequence classification: one class per text."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from toolkit.data.example import IGNORED, Example, Row
from toolkit.data.reading.class_names import class_names
from toolkit.data.reading.column_names import ColumnMissing
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, RecipeError, did_you_mean, first_few
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor, tell_documents
from toolkit.models.config import parsed
from toolkit.models.decoding import Generate
from toolkit.recipe import SequenceClassification
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Loss, Sums, Task
from toolkit.tasks.classes import Classes, alike, head_of, in_order, match, numbered
from toolkit.tasks.labels import NO_LABEL, NOT_A_NAME, counted, label_of, labels_of, unlabelled

MOST_CLASSES = 10_000
"""More distinct labels than this are taken for a mistake in task.label_field."""
PROBLEM_TYPE = "single_label_classification"


class SequenceClassificationTask(Task):
    """Rows hold a text and a label, an integer or a name.

    Classes are those of the checkpoint's own head where the labels are its classes, else those of the data, sorted.
    """

    auto_class = AutoModelForSequenceClassification
    reads_padding = True  # decoders classify the last real token
    legend = "each text as the model reads it; label: the number of its class"

    def __init__(self, options: SequenceClassification, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        self.mapping = Classes(())
        self.classes: list[str] = []
        self.doubtful: dict[str, str] = {}
        self.majority = 0
        self.checkpoint: Any = None
        if tokenizer.pad_token_id is None:
            raise RecipeError(
                f"the tokenizer at {tokenizer.name_or_path!r} has no padding token",
                expected="one: texts of a batch are padded to the longest",
                do="use a checkpoint whose tokenizer names a pad_token, or add it to tokenizer_config.json",
            )

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Find the classes, those of the checkpoint's head where it has one that fits, and the most frequent one."""
        column = self.options.label_field
        classes = class_names(rows).get(column)
        counts = counted(labels_of(rows, column, row_name), column, row_name, signs=classes is None)
        if len(counts) < 2 or len(counts) > MOST_CLASSES:
            found = f": {next(iter(counts))!r}" if len(counts) == 1 else ""
            raise DataError(
                f"task.label_field={column!r} has {len(counts)} distinct values{found}",
                expected=f"between 2 and {MOST_CLASSES} classes",
                do="check task.label_field and the training rows",
            )
        self.checkpoint = checkpoint
        given = {name: parsed(value) for name, value in fields.items()}
        self.mapping = match(classes or in_order(counts), head_of(checkpoint), given)
        self.classes = list(self.mapping.names)
        self.majority = self._index(max(counts, key=lambda name: counts[name]))
        are_told = classes is not None or not self.mapping.new_head  # by the data set itself, or the checkpoint
        doubtful = [] if are_told else [name for name in counts if name.strip().casefold() in NOT_A_NAME]
        self.doubtful = {name: f"{counts[name]:,} of {counts.total():,} rows" for name in doubtful}

    def check(self, rows: Iterable[Row], row_name: RowName) -> None:
        """Raise DataError for held-out rows without labels."""
        column = self.options.label_field
        if self.mapping.index(NO_LABEL) is None:
            counted(labels_of(rows, column, row_name), column, row_name)

    def _index(self, label: str) -> int:
        index = self.mapping.index(label)
        if index is None and label == NO_LABEL:
            raise unlabelled(self.options.label_field, "")
        if index is None:
            raise DataError(
                f"{self.options.label_field}={label!r} does not occur in the training rows{did_you_mean(label, self.classes)}",
                expected=f"one of {', '.join(self.classes[:12])}",
                do="remove the row, or add the class to the training data",
            )
        return index

    @property
    def new_head(self) -> bool:
        """Whether the output layer starts at random values, whatever the checkpoint has."""
        return self.mapping.new_head

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """The classes, what the checkpoint's head becomes, and names that may be meant for one."""
        found = [self.mapping.remark or f"classes: {numbered(self.classes)}"]
        for names in alike(self.classes):
            found.append(
                f"note: {' and '.join(map(repr, names))} are classes of their own, apart by white space or case alone"
            )
        for name, share in self.doubtful.items():
            found.append(
                f"note: {name!r} is a class of its own, in {share}; if it stands for 'no label', remove those rows"
            )
        before = getattr(self.checkpoint, "problem_type", None)
        if not self.new_head and before not in (None, PROBLEM_TYPE):
            found.append(f"the checkpoint's problem_type {before} becomes {PROBLEM_TYPE}: one class per text")
        return found

    def config_overrides(self) -> dict[str, Any]:
        """The classes, so that the export knows their names."""
        return {
            "num_labels": len(self.classes),
            "id2label": dict(enumerate(self.classes)),
            "label2id": {name: index for index, name in enumerate(self.classes)},
            "problem_type": PROBLEM_TYPE,
        }

    def describe(self) -> dict[str, Any]:
        """The columns read and the classes."""
        return {**super().describe(), "classes": self.classes, "matched_by": self.mapping.matched_by}

    def encode(self, row: Row) -> list[Example]:
        """One example: the text between the tokenizer's own special tokens, and the class."""
        text, label = row.get(self.options.text_field), label_of(row, self.options.label_field)
        if not isinstance(text, str):
            column = self.options.text_field
            texts = [name for name, value in row.items() if isinstance(value, str) and name != self.options.label_field]
            raise (DataError if column in row else ColumnMissing)(
                f"task.text_field={column!r} "
                + (f"gives {text!r:.60}" if column in row else "is not there")
                + f"; the columns are {first_few(list(row))}",
                expected="text in task.text_field",
                do="write the value as a string, or remove the row"
                if column in row
                else "set task.text_field to the column that holds the text"
                + (f", {texts[0]!r} perhaps" if texts else ""),
            )
        index = self._index(label)
        encoded = self.tokenizer(text, truncation=False, verbose=False, return_special_tokens_mask=True)
        special = encoded["special_tokens_mask"]
        closing = len(list(itertools.takewhile(bool, reversed(special))))
        columns = {"input_ids": encoded["input_ids"], "labels": [index], "closing": [closing]}
        return [{name: np.array(column, np.int32) for name, column in columns.items()}]

    def columns(self, row: Row) -> Collection[str]:
        """The text and its class."""
        return (self.options.text_field, self.options.label_field)

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids and attention_mask [B, T], labels [B], document_lengths [B, 2]; T is the longest text.

        The lengths are those of a text and of its padding, for attention without a mask (`toolkit.models.attention`).
        """
        examples = [sequence[0] for sequence in sequences]
        shape = (len(examples), max(len(example["input_ids"]) for example in examples))
        tokens = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        documents = []
        for index, example in enumerate(examples):
            length = len(example["input_ids"])
            tokens[index, :length] = example["input_ids"]
            mask[index, :length] = 1
            documents.append([length, shape[1] - length])
        labels = np.array([example["labels"][0] for example in examples], dtype=np.int64)
        return {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            DOCUMENT_LENGTHS: lengths_tensor(documents),
        }

    def count(self, batch: Batch) -> int:
        """Texts with a class (fillers of an evaluation have none)."""
        return int((batch["labels"] != IGNORED).sum())

    def _logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        logits: torch.Tensor = model(**tell_documents(model, inputs)).logits
        return logits.float()

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The cross-entropies of the texts."""
        return Loss(
            nn.functional.cross_entropy(
                self._logits(model, batch),
                batch["labels"],
                ignore_index=IGNORED,
                reduction="sum",
                label_smoothing=self.options.label_smoothing,
            )
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss, texts, correct answers, and how often the majority class would have been right."""
        logits, labels = self._logits(model, batch), batch["labels"]
        valid = labels != IGNORED
        loss = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return {
            "loss": float(loss),
            "targets": float(valid.sum()),
            "correct": float(((logits.argmax(-1) == labels) & valid).sum()),
            "majority": float((labels == self.majority).sum()),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss, accuracy, and the accuracy of always answering the most frequent training class."""
        texts = max(1.0, sums["targets"])
        return {
            "loss": sums["loss"] / texts,
            "accuracy": sums["correct"] / texts,
            "majority_accuracy": sums["majority"] / texts,
        }

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """The class of task.sample_prompt."""
        if self.options.sample_prompt is None:
            return None
        batch = self.collate([[{**self._unlabelled(self.options.sample_prompt)}]])
        device = next(model.parameters()).device
        logits = self._logits(model, {key: value.to(device) for key, value in batch.items()})
        return self.classes[int(logits[0].argmax())]

    def _unlabelled(self, text: str) -> Example:
        return {
            "input_ids": np.array(self.tokenizer(text)["input_ids"], np.int32),
            "labels": np.array([IGNORED], np.int32),
        }
