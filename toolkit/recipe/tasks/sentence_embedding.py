"""The section of sentence embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.errors import RecipeError
from toolkit.recipe.tasks.base import Direction, Task


class SentenceEmbedding(Task):
    """Give texts that belong together similar vectors: for search, clustering, comparison."""

    implementation: ClassVar[str] = "toolkit.tasks.similarity.sentence_embedding:SentenceEmbeddingTask"
    settings: ClassVar[frozenset[str]] = frozenset({"temperature"})
    identity: ClassVar[frozenset[str]] = frozenset({"objective", "pooling", "normalize"})

    name: Literal["sentence_embedding"] = "sentence_embedding"
    """Sentence embeddings."""
    objective: Literal["contrastive", "cosent", "mse"] = "contrastive"
    """contrastive: tell an anchor's positive from all other texts of the global batch (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748). With score_field: cosent orders the pairs of the global batch by their scores (Su 2022), mse makes the cosine of each pair its score."""
    anchor_field: str = "anchor"
    """Column with a text."""
    positive_field: str = "positive"
    """Column with the text that belongs to it, or that it is compared with."""
    negative_field: str | None = None
    """Column with a text that does not belong to the anchor, beside all others of the batch; None: there is none."""
    score_field: str | None = None
    """Column with the similarity of the pair, a number: from -1 to 1 for mse, of any scale for cosent."""
    anchor_prefix: str = ""
    """Put before every anchor, such as "query: "."""
    positive_prefix: str = ""
    """Put before every positive and negative, such as "passage: "."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """From hidden states to a vector: their mean over the text's tokens, that of the first token, or that of the last."""
    normalize: bool = True
    """Bring vectors to length 1, so that contrastive compares cosines; False: it compares dot products."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.05
    """Similarities are divided by it in the losses contrastive and cosent."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        scored = self.objective != "contrastive"
        if scored != (self.score_field is not None):
            raise RecipeError(
                f"task.objective={self.objective!r} with task.score_field={self.score_field!r}",
                expected="a column of scores for cosent and mse, and none for contrastive",
                do="set task.score_field" if scored else "set task.objective='cosent', or take task.score_field out",
            )
        if scored and self.negative_field is not None:
            raise RecipeError(
                f"task.objective={self.objective!r} with task.negative_field={self.negative_field!r}",
                expected="pairs of two texts with a score",
                do="take task.negative_field out",
            )
        idle = [
            f"task.{name}={getattr(self, name)!r}"
            for name in {"mse": ("temperature", "normalize"), "cosent": ("normalize",)}.get(self.objective, ())
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if idle:
            raise RecipeError(
                f"{', '.join(idle)} with task.objective={self.objective!r}, which takes cosines as they are",
                expected="fields that have an effect",
                do=f"take {', '.join(idle)} out",
            )

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of an anchor; how often its positive is the nearest of all held-out texts, and the mean of 1 / its rank. For scored pairs their rank correlation with the cosines."""
        if self.objective == "contrastive":
            return {"loss": "falls", "accuracy_at_1": "rises", "mrr": "rises"}
        return {"loss": "falls", "spearman": "rises"}
