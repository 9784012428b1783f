"""How well texts were heard: error rates of words and characters, by jiwer, and whole texts without an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

Normalize = Callable[[str], str]


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
        "normalized_prediction": normalize(prediction),
        "normalized_reference": normalize(reference),
    }


def transcript_scores(
    records: Sequence[Mapping[str, Any]], scores: Sequence[str], normalize: Normalize
) -> dict[str, float]:
    """`scores` of all records together, normalised: errors per word ("wer") or character ("cer") of the references, 0 and
    more, and the share of texts that are right ("exact_match").

    Where a reference is empty once it is normalised, all that is written for it is an error, as jiwer counts.
    """
    told, meant = ([normalize(record[name]) for record in records] for name in ("prediction", "reference"))
    found = {
        "wer": float(jiwer.wer(meant, told)) if "wer" in scores else 0.0,
        "cer": float(jiwer.cer(meant, told)) if "cer" in scores else 0.0,
        "exact_match": sum(one == other for one, other in zip(told, meant, strict=True)) / max(1, len(records)),
    }
    return {score: found[score] for score in scores}
