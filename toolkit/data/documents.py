"""Examples of several documents of token ids, such as the two answers of a pair: their arrays end to end.

"input_ids" [T] and "labels" [T] as of `toolkit.data.tokens`, "lengths" [D]: tokens of each document. Further arrays are of
the whole example. A document is learned from as a whole or not at all, and every one of them has to fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.data.example import IGNORED, Array, Example
from toolkit.data.packing import Counts
from toolkit.errors import DataError, plural


def joined(documents: Sequence[Example]) -> Example:
    """One example of `documents`, each with "input_ids" and "labels"."""
    return {
        "input_ids": np.concatenate([document["input_ids"] for document in documents]),
        "labels": np.concatenate([document["labels"] for document in documents]),
        "lengths": np.array([len(document["input_ids"]) for document in documents], np.int32),
    }


def apart(example: Example) -> list[tuple[Array, Array]]:
    """Tokens and labels of each document of `example`."""
    ends = np.cumsum(example["lengths"])[:-1]
    return list(zip(np.split(example["input_ids"], ends), np.split(example["labels"], ends), strict=True))


def num_trained(labels: Array) -> int:
    """Labels of a document that carry loss; nothing precedes the first one, so it never counts."""
    return int(np.count_nonzero(labels[1:] != IGNORED))


def is_complete(example: Example) -> bool:
    """Whether every document has something to learn, and no two are the same."""
    documents = apart(example)
    contents = {tokens.tobytes() for tokens, _ in documents}
    return len(contents) == len(documents) and all(num_trained(labels) for _, labels in documents)


def fit(example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
    """`example` as `overlong` (data.overlong) makes it fit into `capacity` tokens; counts what it did.

    "truncate" takes tokens from the ends of the longest documents only. Raises DataError for "error".
    """
    length = len(example["input_ids"])
    if length <= capacity:
        return [example]
    number = len(example["lengths"])
    what = f"an example of {plural(number, 'answer')}" if number > 1 else "an example"
    if overlong == "truncate":
        counts.truncated += 1
        return [_truncated(example, capacity)]
    if overlong == "drop":
        counts.dropped += 1
        return []
    raise DataError(
        f"{what} has {length} tokens and batch.sequence_length is {capacity}",
        expected="examples that fit, since data.overlong='error'",
        do="raise batch.sequence_length, or set data.overlong to 'truncate' or 'drop'",
    )


def _truncated(example: Example, capacity: int) -> Example:
    documents = apart(example)
    limit = _limit([len(tokens) for tokens, _ in documents], capacity)
    cut = joined([{"input_ids": tokens[:limit], "labels": labels[:limit]} for tokens, labels in documents])
    return {**example, **cut}


def _limit(lengths: Sequence[int], capacity: int) -> int:
    """The largest number of tokens per document with which all of them fit."""
    left, room = sorted(lengths), capacity
    while left and left[0] * len(left) <= room:
        room -= left.pop(0)
    return room // len(left) if left else max(lengths)
