"""The section of sequence-to-sequence learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.recipe.numbers import Positive, Rate
from toolkit.recipe.tasks.base import Direction, Task
from toolkit.recipe.tasks.scored import ROUGE, ScoredText

MEASURED: Mapping[str, Mapping[str, Direction]] = {"bleu": {"bleu": "rises"}, "chrf": {"chrf": "rises"}, "rouge": ROUGE}
"""BLEU and chrF from 0 to 100, ROUGE from 0 to 1."""


class Seq2Seq(ScoredText):
    """Write a target text for a source text, with an encoder and a decoder: translation, summarisation."""

    implementation: ClassVar[str] = "toolkit.tasks.seq2seq:Seq2SeqTask"
    measured: ClassVar[Mapping[str, Mapping[str, Direction]]] = MEASURED
    unmeasured: ClassVar[str] = "no target is generated and measured by it"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor"})
    settings: ClassVar[frozenset[str]] = Task.settings | {"scores", "num_beams", "max_new_tokens"}
    needs: ClassVar[Mapping[str, str]] = {
        "source_language": "target_language",
        "target_language": "source_language",
        "translation_field": "source_language",
    }

    name: Literal["seq2seq"] = "seq2seq"
    """Sequence-to-sequence."""
    source_field: str = "source"
    """Column with the text that is read."""
    target_field: str = "target"
    """Column with the text that is to be written."""
    source_language: str | None = None
    """Language of the sources: what a tokenizer of many languages calls it, and the key of the text in translation_field."""
    target_language: str | None = None
    """Language of the targets, likewise."""
    translation_field: str = "translation"
    """Column with {"en": ..., "de": ...}; rows that have it need no source_field and target_field."""
    source_prefix: str = ""
    """Put before every source text, such as "translate English to German: " for T5."""
    target_length: Positive = 128
    """Longest target, in tokens, its end included; batch.sequence_length is that of the source."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all tokens (Szegedy et al. 2016, arXiv 1512.00567)."""
    neftune_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Uniform noise added to the encoder's embeddings in training, scaled by alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914); 0: none."""
    scores: tuple[Literal["bleu", "chrf", "rouge"], ...] = ()
    """What generated targets of the held-out set are measured by: BLEU and chrF of translations, ROUGE of summaries; empty: nothing is generated. Compared with are targets as the tokenizer writes them: an uncased one has no capitals."""
    num_beams: Positive = 1
    """Beams of generation, for `scores` and the sample; 1: greedy."""
    max_new_tokens: Positive | None = None
    """Longest generated target, in tokens; None: target_length."""
    sample_prompt: str | None = None
    """A source text answered before and after training, to look at."""
