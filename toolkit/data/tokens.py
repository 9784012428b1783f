"""Examples of token ids with labels: how long they are, what of them is trained, how they are cut.

"input_ids" [T]; "labels" [T], unshifted, where -100 marks a token without loss, or "labels" [N] of the whole example. Further
arrays are carried along. "closing" [1] says how many tokens at the end stay when the example is cut to a length: those that
a tokenizer puts after every text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from toolkit.data.example import IGNORED, Array, Example
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.errors import DataError, plural


def size(example: Example) -> int:
    """Tokens of `example`."""
    return len(example["input_ids"])


def num_targets(example: Example) -> int:
    """Label positions of `example` that carry loss.

    A causal LM predicts label t from the tokens before t, so the first label of a token-level example never counts.
    """
    labels = example["labels"]
    if len(labels) == len(example["input_ids"]) and len(labels) > 1:
        labels = labels[1:]
    return int(np.count_nonzero(labels != IGNORED))


def masked(example: Example) -> Example:
    """The same example with every label ignored: it takes part in a forward pass and adds nothing to the loss."""
    return {**example, "labels": np.full_like(example["labels"], IGNORED)}


def fit(example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
    """`example` as the examples of at most `capacity` tokens that `overlong` makes of it; counts what it did.

    `overlong` is data.overlong. Raises DataError for "error", and for "split" where cutting would lose the meaning.
    """
    length = len(example["input_ids"])
    if length <= capacity:
        return [example]
    if overlong == "truncate":
        counts.truncated += 1
        return [truncated(example, capacity)]
    if overlong == "drop":
        counts.dropped += 1
        return []
    if overlong == "split":
        counts.split += 1
        return split_overlong(example, capacity)
    raise DataError(
        f"an example has {length} tokens and batch.sequence_length is {capacity}",
        expected="examples that fit, since data.overlong='error'",
        do="raise batch.sequence_length, or set data.overlong to 'truncate', 'drop' or 'split'",
    )


def truncated(example: Example, capacity: int) -> Example:
    """The first `capacity` tokens, or fewer and the ones that close the example."""
    length = len(example["input_ids"])
    closing = min(int(example["closing"][0]), capacity) if "closing" in example else 0
    kept = np.r_[: capacity - closing, length - closing : length]
    return {name: column[kept] if len(column) == length else column for name, column in example.items()}


def cut(ids: Array, length: int, closing: int) -> Array:
    """The first `length` of `ids`, or fewer and the `closing` ones at their end; all of them where they fit."""
    if len(ids) <= length:
        return ids
    return truncated({"input_ids": ids, "closing": np.array([closing])}, length)["input_ids"]


def split_overlong(example: Example, capacity: int) -> list[Example]:
    """Cut plain text into consecutive examples of `capacity` tokens, the last one shorter.

    Raises DataError for anything but plain text: the later parts of a conversation would lose what they answer.
    """
    length = len(example["input_ids"])
    labels = example["labels"]
    if len(labels) != length or (labels[1:] == IGNORED).any():
        raise DataError(
            f"an example of {length} tokens that is not plain text (only some of its tokens carry loss) "
            "would be split, data.overlong='split'",
            expected="plain text, where every part is trained on its own",
            do="set data.overlong to 'truncate' or 'drop', or raise batch.sequence_length",
        )
    pieces = [_piece(example, start, start + capacity) for start in range(0, length, capacity)]
    for piece in pieces[1:]:
        # What predicts a piece's first token is in the piece before.
        piece["labels"] = np.concatenate([np.array([IGNORED], dtype=piece["labels"].dtype), piece["labels"][1:]])
    return pieces


def _piece(example: Example, start: int, stop: int) -> Example:
    """Tokens [start, stop) of `example`: every column as long as "input_ids" is cut, others are kept whole."""
    length = len(example["input_ids"])
    return {name: column[start:stop] if len(column) == length else column for name, column in example.items()}


class TokenKind:
    """Token ids with labels, as `toolkit.data.example.Kind`."""

    transforms: ClassVar[bool] = False
    size = staticmethod(size)
    targets = staticmethod(num_targets)
    fitted = staticmethod(fit)
    ignored = staticmethod(masked)

    sourced: ClassVar[frozenset[str]] = frozenset()
    provenance: ClassVar[frozenset[str]] = frozenset()
    mixes = False

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """Nothing is drawn."""
        return example

    def mix(self, example: Example, other: Example, random: np.random.Generator) -> Example:
        """Nothing is mixed."""
        return example


TOKENS = TokenKind()


def show(tokenizer: Any, example: Example, trained: int | None = None) -> Shown:
    """`example` as text, its trained tokens marked; or with its labels, where these are of the whole example.

    `trained` is how many tokens are trained where they are not those that a causal LM predicts.
    """
    length, labels = len(example["input_ids"]), example["labels"]
    per_token = len(labels) == length
    said = (
        f"{num_targets(example) if trained is None else trained:,} trained"
        if per_token
        else f"label {', '.join(map(str, labels.tolist()))}"
    )
    parts = [
        (tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), trained)
        for trained, ids in _runs(example, per_token=per_token)
    ]
    return Shown(f"{plural(length, 'token')}, {said}", parts)


def _runs(example: Example, *, per_token: bool) -> Iterator[tuple[bool, list[int]]]:
    """Stretches of tokens with and without loss; whole stretches, since single tokens may be parts of characters."""
    ids = example["input_ids"].tolist()
    trained = (example["labels"] != IGNORED).tolist() if per_token else [False] * len(ids)
    for flag, run in groupby(zip(trained, ids, strict=True), key=lambda pair: pair[0]):
        yield flag, [token for _, token in run]
