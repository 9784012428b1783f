"""Answers that are spans of a text: what a row says, windows over it, and the best span of a model's scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.example import Row, as_bytes, as_text
from toolkit.errors import DataError
from toolkit.tasks.columns import value_of

FORM = '{"text": [...], "answer_start": [...]}, as in SQuAD'


@dataclass(frozen=True)
class Answer:
    """An answer and where it begins, in characters."""

    text: str
    start: int

    @property
    def stop(self) -> int:
        """After its last character."""
        return self.start + len(self.text)


def answers_of(row: Row, column: str, context: str, context_column: str) -> list[Answer]:
    """The answers of `row`. Raises DataError where they are not there, or not where they say they are."""
    value = value_of(row, column, "answers_field", FORM)
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value):
        texts, starts = [one.get("text") for one in value], [one.get("answer_start") for one in value]
    else:
        texts = starts = None
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple) or len(texts) != len(starts):
        raise DataError(
            f"task.answers_field={column!r} gives {value!r:.100}",
            expected=f"{FORM}, as many of the one as of the other",
            do="write the answers so",
        )
    pairs = enumerate(zip(texts, starts, strict=True), start=1)
    return [_checked(text, start, number, column, context, context_column) for number, (text, start) in pairs]


def _checked(text: Any, start: Any, number: int, column: str, context: str, context_column: str) -> Answer:
    is_start = isinstance(start, int) and not isinstance(start, bool)
    if not isinstance(text, str) or not text.strip() or not is_start:
        raise DataError(
            f"answer {number} of task.answers_field={column!r} is {text!r:.60} at {start!r}",
            expected="a text that is not empty, and the place of its first letter",
            do="correct the answer, or remove the row",
        )
    there = context[max(0, start) : max(0, start) + len(text)]
    if start < 0 or there != text:
        place = context.find(text)
        hint = f"; it is at {place}" if place >= 0 else f"; it is nowhere in {context_column}"
        raise DataError(
            f"answer {number} of task.answers_field={column!r} is {text!r:.60} at {start}, where {context_column} has "
            f"{there!r:.60}{hint}",
            expected=f"answers that are spans of {context_column}, by the number of the first letter (from 0)",
            do="correct answer_start (it counts characters, not bytes), or remove the row",
        )
    return Answer(text, start)


def token_span(offsets: NDArray[np.int32], answer: Answer) -> tuple[int, int] | None:
    """The first and the last of the tokens with `offsets` [T, 2] that have a character of `answer`; None where none has."""
    places = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.stop))
    return (int(places[0]), int(places[-1])) if len(places) else None


def windows(length: int, room: int, shared: int) -> Iterator[tuple[int, int]]:
    """Stretches [start, stop) of at most `room` of `length` tokens, neighbours sharing `shared`."""
    start = 0
    while start + room < length:
        yield start, start + room
        start += room - shared
    yield start, length


def best_spans(
    start_scores: Tensor, end_scores: Tensor, frames: Tensor, longest: int
) -> tuple[list[tuple[int, int]], list[float]]:
    """Of scores [B, T] in fp32 the span with the largest sum of both, and that sum, for each row.

    A span has at most `longest` tokens, all inside the row's frame, `frames` [B, 2] (start, after the end). Of equal ones it
    is the first.
    """
    places = torch.arange(start_scores.shape[1], device=start_scores.device)
    inside = (places >= frames[:, :1]) & (places < frames[:, 1:])
    spans, scores = [], []
    for start, end, allowed in zip(start_scores, end_scores, inside, strict=True):
        sums = torch.where(allowed, start, -torch.inf)[:, None] + torch.where(allowed, end, -torch.inf)[None, :]
        width = places[None, :] - places[:, None]
        sums = sums.masked_fill((width < 0) | (width >= longest), -torch.inf)
        best = int(sums.argmax())
        spans.append((best // len(places), best % len(places)))
        scores.append(float(sums.flatten()[best]))
    return spans, scores


def texts_as_bytes(texts: list[str]) -> NDArray[np.uint8]:
    """The same for several texts."""
    return as_bytes(json.dumps(texts))


def texts_of(array: NDArray[np.uint8]) -> list[str]:
    """The texts that `texts_as_bytes` has made an array of."""
    found: list[str] = json.loads(as_text(array))
    return found
