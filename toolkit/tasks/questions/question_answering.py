"""Extractive question answering: the span of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from toolkit.data import tokens
from toolkit.data.example import IGNORED, Example, Row, as_bytes, as_text
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, plural
from toolkit.models.decoding import Generate
from toolkit.recipe import QuestionAnswering
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Loss, Record, Sums
from toolkit.tasks.columns import text_of
from toolkit.tasks.metrics.answers import answer_scores
from toolkit.tasks.padded import TOKEN_TYPES, EncoderTask, check_padding, check_places, has_token_types, padded
from toolkit.tasks.questions.spans import (
    answers_of,
    best_spans,
    texts_as_bytes,
    texts_of,
    token_span,
    windows,
)

PER_TOKEN = ("input_ids", TOKEN_TYPES, "offsets")


class QuestionAnsweringTask(EncoderTask):
    """Rows hold a question, a context and the answers in it. An example is one window over the context.

    "span" [2] are the first and last token of the answer, those of no answer (the tokenizer's first token) where the window
    has it not; "frame" [2] where the context's tokens begin and end; "offsets" [T, 2] their characters in "context", which is
    the window's text; "answers" all right ones; "window" [1] its number among those of the question.
    """

    auto_class = AutoModelForQuestionAnswering
    answers = frozenset(("spans",))
    makes_records = True
    trains_head = True

    def __init__(self, options: QuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        self.num_outputs = 2
        check_padding(tokenizer)
        check_places(tokenizer)

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Look whether the checkpoint was one with another number of outputs."""
        self.num_outputs = getattr(checkpoint, "num_labels", 2)

    def config_overrides(self) -> dict[str, Any]:
        """Two outputs per token: beginning and end."""
        return {} if self.num_outputs == 2 else {"num_labels": 2}

    # One row

    def encode(self, row: Row) -> list[Example]:
        """One example with the whole context."""
        options = self.options
        question = text_of(row, options.question_field, "question_field")
        context = text_of(row, options.context_field, "context_field")
        answers = answers_of(row, options.answers_field, context, options.context_field)
        if not answers and not options.unanswerable:
            raise DataError(
                f"task.answers_field={options.answers_field!r} has no answer",
                expected="at least one answer, with task.unanswerable=False",
                do="set task.unanswerable=True to learn that some questions have none, or remove the row",
            )
        encoded = self.tokenizer(question, context, truncation=False, verbose=False, return_offsets_mapping=True)
        places = [place for place, number in enumerate(encoded.sequence_ids()) if number == 1]
        if not places:
            raise DataError(
                f"the tokenizer makes no token of task.context_field={options.context_field!r}, {context!r:.60}",
                expected="a text of characters that it knows",
                do="remove the row",
            )
        frame = (places[0], places[-1] + 1)
        offsets = np.full((len(encoded["input_ids"]), 2), -1, np.int32)
        offsets[slice(*frame)] = encoded["offset_mapping"][slice(*frame)]
        span = token_span(offsets, answers[0]) if answers else None
        if answers and span is None:
            raise DataError(
                f"the tokenizer makes no token of the answer {answers[0].text!r:.60}",
                expected="an answer of characters that it knows",
                do="remove the row",
            )
        types = {TOKEN_TYPES: np.array(encoded[TOKEN_TYPES], np.int32)} if has_token_types(self.tokenizer) else {}
        return [
            {
                "input_ids": np.array(encoded["input_ids"], np.int32),
                **types,
                "offsets": offsets,
                "frame": np.array(frame, np.int32),
                "span": np.array(span or [self._nothing(encoded["input_ids"])] * 2, np.int32),
                "context": as_bytes(context),
                "answers": texts_as_bytes([answer.text for answer in answers]),
                "window": np.zeros(1, np.int32),
            }
        ]

    def _nothing(self, ids: Any) -> int:
        """Where the token stands that means no answer."""
        found = np.flatnonzero(np.asarray(ids) == self.tokenizer.cls_token_id)
        return int(found[0]) if len(found) else 0

    def targets(self, example: Example) -> int:
        """One span, that of no answer included."""
        return 1

    def ignored(self, example: Example) -> Example:
        """The same example without a span to learn."""
        return {**example, "span": np.full_like(example["span"], IGNORED)}

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """As for any text; one that is split becomes windows over its context, each after the whole question."""
        length = tokens.size(example)
        if length <= capacity or overlong in ("drop", "error"):
            return tokens.fit(example, capacity, overlong, counts)
        start, stop = map(int, example["frame"])
        room, shared = capacity - length + stop - start, self.options.doc_stride
        if overlong == "truncate":
            raise DataError(
                f"a question and its context have {length} tokens, batch.sequence_length is {capacity}, and to truncate the "
                "context (data.overlong='truncate') could cut the answer away",
                expected="what fits, or windows over the context",
                do="set data.overlong='split' (windows share task.doc_stride tokens) or 'drop', or raise batch.sequence_length",
            )
        if room <= shared:
            raise DataError(
                f"a question leaves {max(0, room)} of batch.sequence_length={capacity} tokens for the context, of which "
                f"windows share task.doc_stride={shared}",
                expected="room for more than what is shared",
                do="lower task.doc_stride, raise batch.sequence_length, or remove questions that long",
            )
        counts.split += 1
        parts = enumerate(windows(stop - start, room, shared))
        return [self._window(example, start + first, start + last, number) for number, (first, last) in parts]

    def _window(self, example: Example, first: int, last: int, number: int) -> Example:
        """Tokens [first, last) of the context after the question."""
        start, stop = map(int, example["frame"])
        kept = np.r_[:start, first:last, stop : tokens.size(example)]
        part = {name: column[kept] for name, column in example.items() if name in PER_TOKEN}
        begin, end = int(example["offsets"][first, 0]), int(example["offsets"][last - 1, 1])
        frame = (start, start + last - first)
        part["offsets"] = np.where(part["offsets"] < 0, -1, part["offsets"] - begin)
        opens, closes = (int(place) for place in example["span"])
        whole = first <= opens and closes < last
        moved = first - start
        return {
            **example,
            **part,
            "frame": np.array(frame, np.int32),
            "span": np.array(
                [opens - moved, closes - moved] if whole else [self._nothing(part["input_ids"])] * 2, np.int32
            ),
            "context": as_bytes(as_text(example["context"])[begin:end]),
            "window": np.array([number], np.int32),
        }

    def show(self, example: Example) -> Shown:
        """Question and context, the answer marked."""
        ids, (first, last) = example["input_ids"], example["span"]
        parts = [(ids[:first], False), (ids[first : last + 1], True), (ids[last + 1 :], False)]
        shown = [
            (self.tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False), trained)
            for part, trained in parts
        ]
        right = " or ".join(map(repr, dict.fromkeys(texts_of(example["answers"])))) or "none"
        heading = f"{plural(len(ids), 'token')}, window {int(example['window'][0]) + 1} of its question, answer {right}"
        return Shown(heading, shown)

    # A batch

    def stand_in(self, length: int, config: Any) -> Example:
        """A question with its context."""
        nothing = np.zeros(length, np.int32)
        return {"input_ids": nothing, "span": np.zeros(2, np.int32), TOKEN_TYPES: nothing}

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids, attention_mask and, where the tokenizer makes them, token_type_ids [B, T]; spans [B, 2]; document_lengths."""
        examples = [sequence[0] for sequence in sequences]
        types = {TOKEN_TYPES: 0} if TOKEN_TYPES in examples[0] else {}
        spans = np.stack([example["span"] for example in examples]).astype(np.int64)
        return {**padded(self.tokenizer, examples, types), "spans": torch.from_numpy(spans)}

    def count(self, batch: Batch) -> int:
        """Windows with a span to learn."""
        return int((batch["spans"][:, 0] != IGNORED).sum())

    # The model

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [B, T] in fp32 of every token as the first and as the last one; padding has none."""
        found = self.outputs(model, batch)
        padding = batch["attention_mask"] == 0
        start, end = (
            scores.float().masked_fill(padding, -torch.inf) for scores in (found.start_logits, found.end_logits)
        )
        return start, end

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        both = [
            nn.functional.cross_entropy(scores, wanted, ignore_index=IGNORED, reduction="sum")
            for scores, wanted in zip(self._scores(model, batch), batch["spans"].unbind(1), strict=True)
        ]
        return (both[0] + both[1]) / 2

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """Of each window the mean of the cross-entropies of beginning and end."""
        return Loss(self._loss(model, batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss and windows."""
        return {
            "loss": float(self._loss(model, batch)),
            "targets": float((batch["spans"][:, 0] != IGNORED).sum()),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per window."""
        return {"loss": sums["loss"] / max(1.0, sums["targets"])}

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """The best answer of each window, with its score and that of no answer."""
        start, end = self._scores(model, batch)
        frames = torch.from_numpy(np.stack([example["frame"] for example in examples])).to(start.device)
        spans, scores = best_spans(start, end, frames, self.options.max_answer_tokens)
        found = []
        for row, (example, (first, last), score) in enumerate(zip(examples, spans, scores, strict=True)):
            begin, stop = int(example["offsets"][first, 0]), int(example["offsets"][last, 1])
            nothing = self._nothing(example["input_ids"])
            found.append(
                {
                    "prediction": as_text(example["context"])[begin:stop],
                    "reference": texts_of(example["answers"]),
                    "window": int(example["window"][0]),
                    "score": score,
                    "no_answer_score": float(start[row, nothing] + end[row, nothing]),
                }
            )
        return found

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """exact_match and f1 of the best answer over the windows of each question, which follow one another."""
        questions: list[list[Record]] = []
        for record in records:
            if record["window"] == 0 or not questions:
                questions.append([])
            questions[-1].append(record)
        return answer_scores([self._answered(question) for question in questions])

    def _answered(self, question: list[Record]) -> Record:
        best = max(question, key=lambda record: float(record["score"]))
        nothing = min(float(record["no_answer_score"]) for record in question)
        is_none = self.options.unanswerable and nothing - best["score"] > self.options.null_threshold
        return {"prediction": "" if is_none else best["prediction"], "reference": best["reference"]}
