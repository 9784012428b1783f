"""What every task's section has: how it is computed, and what its evaluation measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from toolkit.errors import RecipeError, did_you_mean
from toolkit.recipe.choice import Choice

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
