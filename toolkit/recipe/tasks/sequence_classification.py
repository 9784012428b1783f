"""The section of sequence classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.recipe.numbers import Rate
from toolkit.recipe.tasks.base import Direction, Task


class SequenceClassification(Task):
    """Tell the class of a text."""

    implementation: ClassVar[str] = "toolkit.tasks.sequence_classification:SequenceClassificationTask"

    name: Literal["sequence_classification"] = "sequence_classification"
    """Sequence classification."""
    text_field: str = "text"
    """Column with the text."""
    label_field: str = "label"
    """Column with the class (an integer or a name)."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    neftune_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Uniform noise added to the embeddings in training, scaled by alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914); 0: none."""
    sample_prompt: str | None = None
    """A text whose class is told before and after training, to look at."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a text, share of right answers, and that of always answering the most frequent training class."""
        return {"loss": "falls", "accuracy": "rises", "majority_accuracy": "stays"}
