"""Words and their classes: what a row says, and which token is of which word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.example import Row
from toolkit.data.reading.described import described_rows
from toolkit.data.reading.row_names import RowName, named
from toolkit.errors import DataError
from toolkit.tasks.columns import value_of

Words = list[str]

_ENTITY = re.compile(r"[BIES]-.+")


def words_of(row: Row, column: str) -> Words:
    """The words of `row`. Raises DataError for anything but a list of texts."""
    value = _list_of(row, column, "words_field", "a list of words")
    for place, word in enumerate(value, start=1):
        if not isinstance(word, str) or not word.strip():
            raise DataError(
                f"word {place} of task.words_field={column!r} is {word!r:.60}",
                expected="a text that is not empty",
                do="write the word, or remove it and its label from the row",
            )
    return value


def labels_of(row: Row, column: str) -> Words:
    """The classes of `row`, as text. Raises DataError for anything but a list of names and integers."""
    value = _list_of(row, column, "labels_field", "a list with the class of each word")
    for place, label in enumerate(value, start=1):
        none = label in (-100, -1) or label is None
        if none or not isinstance(label, str | int) or not str(label).strip():
            raise DataError(
                f"label {place} of task.labels_field={column!r} is {label!r:.60}"
                + (", which stands for 'no label'" if none else ""),
                expected="a class for every word: a name or an integer",
                do="write the class; a word without one, and its label, can be removed from the row",
            )
    return [str(label) for label in value]


def tagged(row: Row, words_column: str, labels_column: str) -> tuple[Words, Words]:
    """Words and classes, as many of the one as of the other. Raises DataError for a row that has not."""
    words, labels = words_of(row, words_column), labels_of(row, labels_column)
    if len(words) != len(labels):
        raise DataError(
            f"task.words_field={words_column!r} has {len(words):,} words, task.labels_field={labels_column!r} "
            f"{len(labels):,} labels",
            expected="as many labels as words",
            do="correct the row, or remove it",
        )
    return words, labels


def _list_of(row: Row, column: str, field: str, expected: str) -> list[Any]:
    value = value_of(row, column, field, expected)
    if not isinstance(value, list | tuple):
        raise DataError(
            f"task.{field}={column!r} gives {value!r:.80}",
            expected=expected,
            do="write a list, one entry for each word; a text that is not cut into words must be cut first",
        )
    if not value:
        raise DataError(f"task.{field}={column!r} is empty", expected=expected, do="remove the row")
    return list(value)


def counted(rows: Iterable[Row], column: str, row_name: RowName) -> Counter[str]:
    """How often each class occurs. Raises DataError, with the row, for a row without classes."""
    counts: Counter[str] = Counter()
    select = getattr(rows, "select_columns", None)
    if select is not None and column in (getattr(rows, "column_names", None) or ()):
        rows = select([column])
    for number, row in enumerate(described_rows(rows), start=1):
        try:
            counts.update(labels_of(row, column))
        except DataError as error:
            raise named(error, row_name(number)) from None
    return counts


def are_entities(names: Collection[str]) -> bool:
    """Whether classes are those of entities: B-NAME, I-NAME (E-, S-) and O."""
    marked = [name for name in names if name != "O"]
    begins = any(name.startswith(("B-", "S-")) for name in marked)
    return begins and all(_ENTITY.fullmatch(name) for name in marked)


def goes_on(name: str) -> bool:
    """Whether a word of this class belongs to the entity of the word before it."""
    return name.startswith(("I-", "E-"))


def word_numbers(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The word that each token begins in, -1 for none, by where tokens stand in the words joined by spaces.

    Raises DataError for a word without a token.
    """
    owner = [number for number, word in enumerate(words) for _ in range(len(word) + 1)]
    text = " ".join(words)
    found = []
    for start, stop in offsets:
        begin = next((place for place in range(start, stop) if not text[place].isspace()), None)
        found.append(-1 if begin is None else owner[begin])
    lost = sorted({*range(len(words))} - {*found})
    if lost:
        raise DataError(
            f"the tokenizer makes no token of word {lost[0] + 1}, {words[lost[0]]!r:.60}",
            expected="words of characters that it knows",
            do="remove the word and its label from the row",
        )
    return found


def begins(words: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which tokens are the first of their word, by the word of each (-1: none)."""
    before = np.maximum.accumulate(np.r_[-1, words[:-1]])
    found: NDArray[np.bool_] = words > before
    return found


def between_words(
    places: Sequence[int], apart: Collection[int], whole: tuple[int, int], room: int
) -> Iterator[tuple[int, int]]:
    """Stretches [start, stop) of at most `room` tokens, of whole words, that together are those of `whole`.

    `places` are the first tokens of the words, of which those in `apart` are cut before where that is possible. Raises
    DataError for a word without room.
    """
    start, end = whole
    while end - start > room:
        possible = [place for place in places if start < place <= start + room]
        if not possible:
            raise DataError(
                f"a word has more tokens than the {max(0, room)} that batch.sequence_length leaves beside the special ones",
                expected="room for every word",
                do="raise batch.sequence_length",
            )
        stop = max((place for place in possible if place in apart), default=possible[-1])
        yield start, stop
        start = stop
    yield start, end
