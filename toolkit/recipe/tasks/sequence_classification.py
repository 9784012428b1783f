"""The section of sequence classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import Rate
from toolkit.recipe.tasks.base import Direction, Task

_METRICS: dict[str, dict[str, Direction]] = {
    "single_label_classification": {
        "accuracy": "rises", "majority_accuracy": "stays", "f1_macro": "rises", "mcc": "rises",
    },
    "multi_label_classification": {"accuracy": "rises", "f1_micro": "rises", "f1_macro": "rises"},
    "regression": {"pearson": "rises", "spearman": "rises"},
}  # fmt: skip


class SequenceClassification(Task):
    """Tell the class of a text or of a pair of texts, several classes at once, or a number."""

    implementation: ClassVar[str] = "toolkit.tasks.labels.sequence_classification:SequenceClassificationTask"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline"})

    name: Literal["sequence_classification"] = "sequence_classification"
    """Sequence classification."""
    text_field: str = "text"
    """Column with the text."""
    second_text_field: str | None = None
    """Column with a second text, where the class is one of a pair; the tokenizer says how they are put together."""
    label_field: str = "label"
    """Column with the class (an integer or a name), a list of classes, or a number."""
    label_fields: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each class, in the place of `label_field`: a text may be of several classes."""
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"
    """What a label is: one class, any number of classes, or a number; "auto": several where the first is a list, a number where every label has a fraction, else one class."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567); of one class per text."""
    neftune_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Uniform noise added to the embeddings in training, scaled by alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914); 0: none."""
    sample_prompt: str | None = None
    """A text whose class is told before and after training, to look at."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        given = [
            f"task.{name}={getattr(self, name)!r}"
            for name, idle in (("label_field", "label"), ("problem_type", "auto"))
            if getattr(self, name) not in (idle, "multi_label_classification")
        ]
        if self.label_fields and given:
            raise RecipeError(
                f"task.label_fields={self.label_fields!r} with {' and '.join(given)}",
                expected="a column for each class, or one column with the label",
                do=f"leave out task.label_fields, or {' and '.join(given)}",
            )
        if self.sample_prompt is not None and self.second_text_field is not None:
            raise RecipeError(
                f"task.sample_prompt={self.sample_prompt!r:.60} with task.second_text_field={self.second_text_field!r}",
                expected="no sample where the class is one of a pair of texts",
                do="leave out task.sample_prompt",
            )

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a text; of one class the share of right answers, that of always answering the most frequent training
        class, the mean F1 of the classes and Matthews' correlation; of several the share of right sets and F1; of numbers
        the correlations. With problem_type "auto" all of them, until the data has been seen."""
        chosen = _METRICS if self.problem_type == "auto" else {self.problem_type: _METRICS[self.problem_type]}
        return {"loss": "falls", **{name: way for metrics in chosen.values() for name, way in metrics.items()}}
