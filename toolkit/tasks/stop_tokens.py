"""Which tokens training teaches as the end of an answer: found in the labels, never by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from toolkit.data.example import IGNORED, Encode, Example, Row
from toolkit.data.reading.described import as_described
from toolkit.data.reading.mixture import some_rows
from toolkit.errors import DataError

ROWS = 64
"""Rows looked at, of each source: ends come from the template or the end token, which are the same in every row."""
LEAST_SHARE = 0.05
"""Of the answers that must end with a token for it to be one that ends answers: tool calls may have one of their own."""


def trained_ends(rows: Iterable[Row], encode: Encode, tokenizer: Any) -> tuple[int, ...]:
    """Ids of the special tokens that end the answers of the first rows, the most frequent first.

    As `encode` gives the rows: before any is cut to a length. An ordinary token is no place to stop.
    """
    encode = as_described(encode, rows)
    counts = Counter(end for row in some_rows(rows, ROWS) for end in _ends(row, encode, tokenizer))
    least = LEAST_SHARE * sum(counts.values())
    own = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return tuple(token for token, count in counts.most_common() if token in own and count >= least)


def _ends(row: Row, encode: Encode, tokenizer: Any) -> Iterator[int]:
    try:
        examples = encode(row)
    except DataError:
        return  # it is reported with its number where all rows are encoded
    for example in examples:
        for start, stop in _runs(example):
            # A template may train the white space behind the token that ends the turn.
            tokens = example["input_ids"][start:stop].tolist()
            end = next((token for token in reversed(tokens) if tokenizer.decode([token]).strip()), None)
            if end is not None:
                yield end


def _runs(example: Example) -> Iterator[tuple[int, int]]:
    """(first, after the last) of each stretch of tokens with loss."""
    trained = np.concatenate([[False], example["labels"] != IGNORED, [False]])
    edges = np.flatnonzero(trained[1:] != trained[:-1])
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
