"""How well texts were heard: error rates of words and characters, by jiwer, and whole texts without an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

Normalize = Callable[[str], str]
PREDICTION, REFERENCE = "normalized_prediction", "normalized_reference"
"""Entries of a record: what is compared."""


def normalizer(kind: str, spelling: Mapping[str, str] | None = None) -> Normalize:
    """Whisper's own rules, by their name in task.normalizer; `spelling`: British to American, of a tokenizer that has it."""
    if kind == "english":
        rules: Normalize = EnglishTextNormalizer(dict(spelling or {}))
    elif kind == "basic":
        rules = BasicTextNormalizer()
    else:
        rules = str
    return lambda text: " ".join(rules(text).split())


def compared(prediction: str, reference: str, normalize: Normalize) -> dict[str, Any]:
    """The record of one text: as it was written, and as it is compared."""
    return {
        "prediction": prediction,
        "reference": reference,
        PREDICTION: normalize(prediction),
        REFERENCE: normalize(reference),
    }


def transcript_scores(records: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> dict[str, float]:
    """`scores` of all records together: errors per word ("wer") or character ("cer") of the references, 0 and more, and the share of texts that are right ("exact_match").

    Of references that are empty once they are normalised every word is one too many, as jiwer counts it.
    """
    told = [record[PREDICTION] for record in records]
    meant = [record[REFERENCE] for record in records]
    found: dict[str, float] = {}
    for score in scores:
        if score == "exact_match":
            right = sum(one == other for one, other in zip(told, meant, strict=True))
            found[score] = right / max(1, len(records))
        else:
            rate = jiwer.wer if score == "wer" else jiwer.cer
            found[score] = float(rate(meant, told)) if meant else 0.0
    return found
