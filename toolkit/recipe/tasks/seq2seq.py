"""The section of sequence-to-sequence learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import Positive, Rate
from toolkit.recipe.tasks.base import Direction, Task

ROUGE = ("rouge1", "rouge2", "rougeL")
MEASURED: Mapping[str, tuple[str, ...]] = {"bleu": ("bleu",), "chrf": ("chrf",), "rouge": ROUGE}
"""What `scores` asks for -> the metrics that an evaluation then has."""


class Seq2Seq(Task):
    """Write a target text for a source text, with an encoder and a decoder: translation, summarisation."""

    implementation: ClassVar[str] = "toolkit.tasks.seq2seq:Seq2SeqTask"
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

    @model_validator(mode="after")
    def _check_scores(self) -> Seq2Seq:
        if len(set(self.scores)) < len(self.scores):
            raise RecipeError(
                f"task.scores={self.scores!r} names one twice",
                expected="each of bleu, chrf and rouge at most once",
                do="correct task.scores",
            )
        return self

    def check_metric(self, metric: str) -> None:
        """As for every task; of a metric that `scores` would give, say so."""
        score = next((score for score, metrics in MEASURED.items() if metric in metrics), None)
        if score is not None and score not in self.scores:
            raise RecipeError(
                f"evaluation.metric={metric!r} with task.name={self.name!r} and task.scores={self.scores!r}",
                expected=f"{score!r} in task.scores, without which no target is generated and measured by it",
                do=f"set task.scores to {' '.join((*self.scores, score))}, or another evaluation.metric",
            )
        super().check_metric(metric)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a target token and its exponential, and what `scores` asks for, from 0 to 100 (ROUGE: to 1)."""
        found: dict[str, Direction] = {"loss": "falls", "perplexity": "falls"}
        return found | {metric: "rises" for score in self.scores for metric in MEASURED[score]}
