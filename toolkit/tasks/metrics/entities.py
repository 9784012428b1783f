"""Entities found in texts, by seqeval (as the CoNLL-2000 script conlleval counts them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def entity_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """precision, recall and f1 of entities, over all their types (micro), and accuracy of tags; 0 to 1.

    "prediction" and "reference" are the tags of a text's words ("B-PER", "I-PER", "O", ...), as many of the one as of the
    other. An entity is right where its type, its first and its last word are. A text without words counts nothing.
    """
    from seqeval import metrics  # takes a second, and rank 0 alone needs it

    expected = [list(record["reference"]) for record in records]
    predicted = [list(record["prediction"]) for record in records]
    return {
        "precision": float(metrics.precision_score(expected, predicted, zero_division=0)),
        "recall": float(metrics.recall_score(expected, predicted, zero_division=0)),
        "f1": float(metrics.f1_score(expected, predicted, zero_division=0)),
        "accuracy": float(metrics.accuracy_score(expected, predicted)),
    }
