"""The last answer of a conversation: what it follows, what it says, and how a generated one compares with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.data.example import IGNORED, Example
from toolkit.recipe.tasks.image_text import MEASURED
from toolkit.tasks.metrics.summaries import summary_scores


def last_answer(example: Example) -> tuple[int, int]:
    """(first, after the last) token of the last answer that is learned."""
    learned = np.flatnonzero(example["labels"] != IGNORED)
    end = int(learned[-1]) + 1
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[gaps[-1] + 1] if len(gaps) else learned[0]), end


def answer_metrics(records: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> dict[str, float]:
    """What `scores` asks for, 0 to 1: the share of predictions that are their reference but for capitals and white space, ROUGE."""
    found: dict[str, float] = {}
    if "exact_match" in scores:
        same = [_plain(record["prediction"]) == _plain(record["reference"]) for record in records]
        found["exact_match"] = sum(same) / len(same)
    if "rouge" in scores:
        found |= summary_scores(records)
    return {name: found[name] for score in scores for name in MEASURED[score]}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
