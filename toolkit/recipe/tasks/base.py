"""What every task's section has: how it is computed, and what its evaluation measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from toolkit.errors import RecipeError, did_you_mean
from toolkit.recipe.choice import Choice

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe

Direction = Literal["falls", "rises", "stays"]
"""What a metric does as the model improves; "stays": it does not depend on the model."""


class Task(Choice):
    """What is learned from the examples. Subclass it to add a task; docs/adding.md shows how."""

    section: ClassVar[str] = "task"
    kinds: ClassVar[dict[str, type[Any]]] = {}
    settings: ClassVar[frozenset[str]] = frozenset(
        {"label_smoothing", "neftune_alpha", "sample_prompt", "sample_tokens"}
    )
    needs: ClassVar[Mapping[str, str]] = {"sample_tokens": "sample_prompt"}
    implementation: ClassVar[str]
    """`module:Class` of what computes it, a subclass of `toolkit.tasks.base.Task`. Named, so that a recipe imports no torch."""

    cuts: ClassVar[frozenset[str]] = frozenset()
    """The degrees of the parallel section above 1 that the task takes: "tensor", "pipeline", "sequence"."""
    splits: ClassVar[bool] = False
    """Whether an example that is too long may be trained in parts, as data.overlong="split" asks."""
    reads_reference: ClassVar[bool] = False
    """Whether the loss compares with the model that training begins with."""

    has_length: ClassVar[bool] = True
    """Whether examples are sequences of tokens, of which batch.sequence_length is the longest."""
    reads_media: ClassVar[bool] = False
    """Whether rows hold, or name, images or recordings."""
    needs_processor: ClassVar[bool] = True
    """Whether nothing can be read without the files of a tokenizer or another processor; False: the section's fields will do."""

    brings_model: ClassVar[bool] = False
    """Whether the network is the task's own: then there need be neither a checkpoint nor an architecture."""

    def check_with(self, recipe: Recipe) -> None:
        """Raise RecipeError where the other sections of `recipe` do not fit this task."""
        if recipe.model.path is None and recipe.model.architecture is None and not self.brings_model:
            raise recipe.model.two_sources()
        if recipe.model.path is None and recipe.model.tokenizer is None and self.needs_processor:
            raise RecipeError(
                f"model.architecture={recipe.model.architecture!r} with model.tokenizer=None and task.name={self.name!r}",
                expected="a tokenizer, since no checkpoint provides it",
                do="set model.tokenizer",
            )
        if recipe.model.attention == "varlen" and not self.has_length:
            raise RecipeError(
                f"model.attention='varlen' with task.name={self.name!r}",
                expected="a task whose examples are sequences of tokens, of which each is computed by itself",
                do="set model.attention='auto'",
            )
        if recipe.data.overlong == "split" and not self.splits:
            raise RecipeError(
                f"data.overlong='split' with task.name={self.name!r}",
                expected="'truncate', 'drop' or 'error': what this task learns is of a whole example, not of a part",
                do="set data.overlong='truncate', or raise batch.sequence_length",
            )
        if self.reads_reference and recipe.data.streaming and not recipe.tuning.keeps_base:
            raise RecipeError(
                f"data.streaming=True with task.name={self.name!r} and tuning.name={recipe.tuning.name!r}",
                expected="examples that are there before training, since what the first weights give to them is computed "
                "then; or adapters alone, without which the model is the one it was",
                do="set data.streaming=False, or tuning=LoRA(...) without modules_to_save",
            )

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """The metrics of an evaluation; always with "loss"."""
        return {"loss": "falls"}

    def higher_is_better(self, metric: str) -> bool:
        """Whether `metric` rises as the model improves."""
        return self.metrics[metric] == "rises"

    def check_metric(self, metric: str) -> None:
        """Raise RecipeError when an evaluation has no `metric` that could improve."""
        targets = [name for name, direction in self.metrics.items() if direction != "stays"]
        if metric not in targets:
            why = " (it does not depend on the model)" if metric in self.metrics else did_you_mean(metric, targets)
            raise RecipeError(
                f"evaluation.metric={metric!r} with task.name={self.name!r}{why}",
                expected=f"one of {', '.join(targets)}",
                do="correct evaluation.metric",
            )
