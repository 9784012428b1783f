"""Exact match and F1 of answers to questions, as SQuAD's official script has them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """exact_match and f1, 0 to 100: means over questions of the best over the reference answers.

    "prediction" is the answer's text, empty for none; "reference" the list of right ones, empty where there is none
    (SQuAD 2.0). Texts are compared without case, ASCII punctuation, articles and surplus spaces.
    """
    exact, overlap = 0.0, 0.0
    for record in records:
        # As in the script of 2.0: what nothing is left of is no answer, and no answer at all is the empty one.
        right = [text for text in record["reference"] if normalized(text)] or [""]
        exact += max(float(normalized(text) == normalized(record["prediction"])) for text in right)
        overlap += max(token_f1(record["prediction"], text) for text in right)
    return {"exact_match": 100 * exact / len(records), "f1": 100 * overlap / len(records)}


def normalized(text: str) -> str:
    """`text` in lower case, without ASCII punctuation, then without English articles, words one space apart."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of the shares of words that the two have in common; of two empty answers 1, of one 0."""
    ours, theirs = normalized(prediction).split(), normalized(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))
