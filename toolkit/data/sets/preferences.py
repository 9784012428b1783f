"""A good and a bad answer to each question about the Python library, and what else follows from questions and answers."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from toolkit.data.sets.docstrings import Answered, answered, split_of
from toolkit.data.sets.rows import Row, Splits, share


def preferences(root: Path) -> Splits:
    """{"prompt", "chosen", "rejected"}: a question, its answer, and the same answer spoilt.

    The question names a function or a class, the chosen answer is the first paragraph of its docstring. The rejected
    answer is one of three, by a hash of the question: the words of the chosen one in random order; the answer to another
    question of the same split; the first half of the chosen one with its last three words repeated until it is as long. An
    answer has 6 words or more. About one top-level module in ten is held out, and no answer occurs twice among the chosen.
    """
    by_split: dict[str, list[Answered]] = defaultdict(list)
    for item in answered(root):
        if len(item.answer.split()) >= 6:
            by_split[split_of(item.package)].append(item)
    return {name: _judged(items) for name, items in by_split.items()}


def feedback(root: Path) -> Splits:
    """{"prompt", "completion", "label"}: a question, an answer, and whether it is the right one.

    Of each row of docstring-preferences one answer, by a hash of the question: the chosen one, which is true, or the
    rejected one, which is false. About one top-level module in ten is held out.
    """
    return {name: [_unpaired(row) for row in rows] for name, rows in preferences(root).items()}


def spoilt(answer: str, other: str, seed: str) -> str:
    """`answer` made worse in one of three ways, which `seed` alone decides; `other` is the answer to another question."""
    words = answer.split()
    kind = int(3 * share(f"kind {seed}"))
    if kind == 0:
        shuffled = sorted(words)
        random.Random(f"words {seed}").shuffle(shuffled)
        if shuffled != words:
            return " ".join(shuffled)
    if kind == 1:
        return other
    kept = words[: len(words) // 2]
    while len(kept) < len(words):
        kept += kept[-3:]
    return " ".join(kept[: len(words)])


def _judged(items: list[Answered]) -> list[Row]:
    # The next one by hash is from anywhere in the library.
    ordered = sorted(items, key=lambda item: share(f"order {item.question}"))
    others = [*ordered[1:], ordered[0]]
    return [
        {
            "prompt": item.question,
            "chosen": item.answer,
            "rejected": spoilt(item.answer, other.answer, item.question),
        }
        for item, other in zip(ordered, others, strict=True)
    ]


def _unpaired(row: Row) -> Row:
    good = share(f"good {row['prompt']}") < 0.5
    return {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
