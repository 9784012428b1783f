"""Token classification: one class per word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from toolkit.data import tokens
from toolkit.data.example import IGNORED, Example, Row
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.class_names import class_names
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, plural
from toolkit.models.config import parsed
from toolkit.models.decoding import Generate
from toolkit.recipe import TokenClassification
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Loss, Record, Sums
from toolkit.tasks.labels.classes import MOST_CLASSES, Classes, head_of, in_order, match, numbered
from toolkit.tasks.labels.tagged_words import (
    are_entities,
    begins,
    between_words,
    counted,
    goes_on,
    tagged,
    word_numbers,
)
from toolkit.tasks.metrics.entities import entity_scores
from toolkit.tasks.metrics.labels import class_scores
from toolkit.tasks.padded import EncoderTask, check_padding, check_places, closing_tokens, padded
from toolkit.tasks.sequence_parts import part_of

HEAD = "ForTokenClassification"


class TokenClassificationTask(EncoderTask):
    """Rows hold a list of words and a list of their classes; the words are read as a text, joined by spaces.

    Classes are those of the checkpoint's own head where the labels are its classes, else those of the data, sorted.
    """

    auto_class = AutoModelForTokenClassification
    answers = frozenset(("targets",))
    makes_records = True
    legend = "each text as the model reads it; classes: of its words"

    def __init__(self, options: TokenClassification, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        self.asked = options
        self.mapping = Classes(())
        self.classes: list[str] = []
        self.majority = 0
        check_padding(tokenizer)
        check_places(tokenizer)

    # The rows as a whole

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Find the classes, those of the checkpoint's head where it has one that fits; what they are; the most frequent one."""
        column = self.options.labels_field
        counts = counted(rows, column, row_name)
        if len(counts) < 2 or len(counts) > MOST_CLASSES:
            raise DataError(
                f"task.labels_field={column!r} has {plural(len(counts), 'class', 'classes')}",
                expected=f"between 2 and {MOST_CLASSES} classes",
                do="check task.labels_field and the training rows",
            )
        named = class_names(rows).get(column)
        labels = named if named and set(counts) <= set(named) else in_order(counts)
        given = {name: parsed(value) for name, value in fields.items()}
        self.mapping = match(labels, head_of(checkpoint, HEAD), given, field="labels_field")
        self.classes = list(self.mapping.names)
        self.majority = self._index(max(counts, key=lambda name: counts[name]))
        self.options = self.options.model_copy(update={"scheme": self._scheme()})

    def _scheme(self) -> str:
        entities, asked = are_entities(self.classes), self.asked.scheme
        if asked == "entities" and not entities:
            raise DataError(
                f"task.scheme='entities' with the classes {numbered(self.classes)}",
                expected="B-NAME, I-NAME and O, or with E-NAME and S-NAME (BIOES)",
                do="set task.scheme='tags', or write the classes so",
            )
        return asked if asked != "auto" else "entities" if entities else "tags"

    def _index(self, label: str) -> int:
        return self.mapping.known(label, f"{self.options.labels_field} has {label!r}, which")

    @property
    def new_head(self) -> bool:
        """Whether the output layer starts at random values, whatever the checkpoint has."""
        return self.mapping.new_head

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """The classes, what the checkpoint's head becomes, and how the classes are measured."""
        found = [self.mapping.remark or f"classes: {numbered(self.classes)}"]
        found += self.mapping.spellings()
        measured = "entities, measured as wholes" if self.options.scheme == "entities" else "tags, one for each word"
        return [*found, f"the classes are {measured}"]

    def config_overrides(self) -> dict[str, Any]:
        """The classes, so that the export knows their names."""
        return self.mapping.config()

    def describe(self) -> dict[str, Any]:
        """The columns read and the classes."""
        return {**super().describe(), **self.mapping.describe()}

    # One row

    def encode(self, row: Row) -> list[Example]:
        """One example: tokens, the word that each is of (-1: none), and the class where it is learned."""
        words, names = tagged(row, self.options.words_field, self.options.labels_field)
        indices = [self._index(name) for name in names]
        found = self._encoded(words)
        numbers = found["words"]
        labels = np.array([indices[number] if number >= 0 else IGNORED for number in numbers], np.int32)
        following = np.flatnonzero(~begins(numbers) & (numbers >= 0))
        if not self.options.label_all_tokens:
            labels[following] = IGNORED
        elif self.options.scheme == "entities":
            labels[following] = [self._inner(label) for label in labels[following]]
        return [{**found, "labels": labels}]

    def _encoded(self, words: Sequence[str]) -> Example:
        encoded = self.tokenizer(
            " ".join(words),
            truncation=False,
            verbose=False,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
        )
        framing = encoded["special_tokens_mask"]
        found = {
            "input_ids": encoded["input_ids"],
            "words": word_numbers(words, encoded["offset_mapping"]),
            "opening": [closing_tokens(framing[::-1])],
            "closing": [closing_tokens(framing)],
        }
        return {name: np.array(column, np.int32) for name, column in found.items()}

    def _inner(self, label: int) -> int:
        """The class of what follows the beginning of an entity, inside the same word."""
        kind, _, name = self.classes[label].partition("-")
        inner = self.mapping.index(f"I-{name}") if kind == "B" else None
        return label if inner is None else inner

    def targets(self, example: Example) -> int:
        """Tokens with a class to learn."""
        return int((example["labels"] != IGNORED).sum())

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """As for any text, but that one that is split is cut between words, where no entity goes on if there is such a place.

        Every part stands between special tokens of its own.
        """
        length = tokens.size(example)
        if length <= capacity or overlong != "split":
            return tokens.fit(example, capacity, overlong, counts)
        counts.split += 1
        opening, closing = int(example["opening"][0]), int(example["closing"][0])
        places = np.flatnonzero(begins(example["words"]))
        apart = {int(place) for place in places if not goes_on(self.classes[example["labels"][place]])}
        parts = between_words(places.tolist(), apart, (opening, length - closing), capacity - opening - closing)
        kept = [np.r_[:opening, start:stop, length - closing : length] for start, stop in parts]
        cut = ("input_ids", "words", "labels")
        return [{name: column[part] if name in cut else column for name, column in example.items()} for part in kept]

    def show(self, example: Example) -> Shown:
        """The text, and the classes of its words."""
        places = np.flatnonzero(begins(example["words"]))
        named = ", ".join(self.classes[label] for label in example["labels"][places])
        length = tokens.size(example)
        text = self.tokenizer.decode(
            example["input_ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return Shown(f"{plural(length, 'token')}, {plural(len(places), 'word')}: {named}", [(text, False)])

    # A batch

    def assume(self) -> None:
        """Two classes, as good as any number of them: the head is small."""
        self.fit([{self.options.labels_field: [0, 1]}])

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids, attention_mask and targets [B, T] with T the longest text, document_lengths [B, 2]."""
        batch = padded(self.tokenizer, [sequence[0] for sequence in sequences], {"labels": IGNORED})
        batch["targets"] = batch.pop("labels")
        return batch

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """Equal parts, see `toolkit.tasks.sequence_parts`."""
        return part_of(batch, index, count)

    def count(self, batch: Batch) -> int:
        """Tokens with a class to learn."""
        return int((batch["targets"] != IGNORED).sum())

    # The model

    def _losses(self, model: nn.Module, batch: Batch, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.outputs(model, batch).logits.float()
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1),
            batch["targets"].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return loss, logits

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The cross-entropies of the labelled tokens."""
        return Loss(self._losses(model, batch, self.options.label_smoothing)[0])

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss (never smoothed), labelled tokens, and of those the ones that the most frequent class would be right for."""
        loss, _ = self._losses(model, batch, 0.0)
        return {
            "loss": float(loss),
            "targets": float((batch["targets"] != IGNORED).sum()),
            "majority": float((batch["targets"] == self.majority).sum()),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per labelled token, and the accuracy of always answering the most frequent training class."""
        count = max(1.0, sums["targets"])
        return {"loss": sums["loss"] / count, "majority_accuracy": sums["majority"] / count}

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """The classes of the words of each text, told by their first tokens."""
        best = self.outputs(model, batch).logits.argmax(-1).cpu().numpy()
        found = []
        for row, example in zip(best, examples, strict=True):
            places = np.flatnonzero(begins(example["words"]))
            told, labels = row[places], example["labels"][places]
            found.append(
                {"prediction": self._names(told), "reference": self._names(np.maximum(labels, 0))}  # fillers have none
            )
        return found

    def _names(self, indices: Iterable[int]) -> list[str]:
        return [self.classes[index] for index in indices]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """precision, recall and f1 of entities or f1_macro of tags, and the accuracy of words."""
        if self.options.scheme == "entities":
            return entity_scores(records)
        words = [
            {"prediction": told, "reference": right}
            for record in records
            for told, right in zip(record["prediction"], record["reference"], strict=True)
        ]
        found = class_scores(words)
        return {name: found[name] for name in ("accuracy", "f1_macro")}

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """The words of task.sample_prompt, each with its class."""
        prompt = self.options.sample_prompt
        words = (prompt or "").split()
        if not words:
            return None
        example = self._encoded(words)
        batch = padded(self.tokenizer, [example])
        device = next(model.parameters()).device
        logits = self.outputs(model, {name: values.to(device) for name, values in batch.items()}).logits[0]
        told = self._names(logits.argmax(-1).cpu().numpy()[begins(example["words"])])
        return " ".join(f"{word}/{name}" for word, name in zip(words, told, strict=True))
