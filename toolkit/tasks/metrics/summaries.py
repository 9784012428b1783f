"""ROUGE of summaries, by rouge-score (Google's, a port of the original script)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("rouge1", "rouge2", "rougeL")


def summary_scores(records: Sequence[Mapping[str, Any]], *, stem: bool = True) -> dict[str, float]:
    """rouge1, rouge2 and rougeL, 0 to 1: mean F-measures of texts "prediction" against "reference", a text or a list.

    Of several references the best counts. `stem` strips English endings first (Porter's stemmer), as is customary. Only
    ASCII letters and digits are compared, as in the original script: for other languages take chrF. Lin 2004.
    """
    from rouge_score.rouge_scorer import RougeScorer  # takes seconds (nltk), and rank 0 alone needs it

    scorer = RougeScorer(KINDS, use_stemmer=stem)
    found = [scorer.score_multi(_as_list(record["reference"]), record["prediction"]) for record in records]
    return {kind: sum(scores[kind].fmeasure for scores in found) / len(found) for kind in KINDS}


def _as_list(reference: str | Sequence[str]) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)
