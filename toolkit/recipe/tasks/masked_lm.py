"""The section of masked language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import Fraction
from toolkit.recipe.tasks.base import Direction, Task


class MaskedLM(Task):
    """Tell hidden tokens of a text from those around them (Devlin et al. 2018, arXiv 1810.04805): encoders on plain text."""

    implementation: ClassVar[str] = "toolkit.tasks.language.masked_lm:MaskedLMTask"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline", "sequence"})
    splits: ClassVar[bool] = True

    identity: ClassVar[frozenset[str]] = frozenset({"mask_probability", "mask_share", "random_share"})

    name: Literal["masked_lm"] = "masked_lm"
    """Masked language modelling."""
    text_field: str = "text"
    """Column with plain text."""
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of a text's tokens that are to be told, at least one; drawn anew in every pass over the data, the same in every evaluation."""
    whole_word: bool = False
    """Choose words, not tokens: all tokens of a word are to be told together. Words are those of the tokenizer."""
    mask_share: Fraction = 0.8
    """Share of the chosen tokens that the mask token takes the place of."""
    random_share: Fraction = 0.1
    """Share of the chosen tokens that any other token takes the place of; what is left of 1 stays as it is."""
    sample_prompt: str | None = None
    """A text with one mask token, filled in before and after training, to look at."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.mask_share + self.random_share > 1.0:
            raise RecipeError(
                f"task.mask_share={self.mask_share} and task.random_share={self.random_share} are more than all",
                expected="two shares of the chosen tokens, of 1 together at most",
                do="lower one of them",
            )

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a hidden token, its exponential, and the share of hidden tokens that are told right."""
        return {"loss": "falls", "perplexity": "falls", "accuracy": "rises"}
