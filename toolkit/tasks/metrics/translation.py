"""BLEU and chrF of whole corpora, by sacrebleu with its default settings, so that papers can be compared with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import sacrebleu


def translation_scores(records: Sequence[Mapping[str, Any]], *, tokenizer: str | None = None) -> dict[str, float]:
    """bleu and chrf, 0 to 100: of texts "prediction" against "reference", a text or a list of several.

    BLEU (Papineni et al. 2002) with exponential smoothing and `tokenizer` of sacrebleu (None: "13a"; "zh", "ja-mecab" and
    "ko-mecab" for languages without spaces); chrF2 (Popovic 2015). Post 2018, arXiv 1804.08771.
    """
    predictions = [record["prediction"] for record in records]
    references = [_as_list(record["reference"]) for record in records]
    # Streams: the first reference of every text, the second of every text that has one, and so on.
    streams = [list(stream) for stream in itertools.zip_longest(*references)]
    bleu = sacrebleu.BLEU(**({} if tokenizer is None else {"tokenize": tokenizer}))
    return {
        "bleu": bleu.corpus_score(predictions, streams).score,
        "chrf": sacrebleu.CHRF().corpus_score(predictions, streams).score,
    }


def _as_list(reference: str | Sequence[str]) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)
