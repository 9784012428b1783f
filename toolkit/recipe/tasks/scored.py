"""What the sections share whose `scores` say by what the texts that the model writes are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.tasks.base import Direction, Task

ROUGE: Mapping[str, Direction] = {"rouge1": "rises", "rouge2": "rises", "rougeL": "rises"}
"""The metrics of the score "rouge"."""


class Scored(Task):
    """A task with a field `scores`."""

    measured: ClassVar[Mapping[str, Mapping[str, Direction]]]
    """What `scores` may ask for -> the metrics that an evaluation then has."""
    unmeasured: ClassVar[str]
    """What does not happen to a metric that `scores` does not ask for, for messages."""

    @property
    def _asked(self) -> tuple[str, ...]:
        """What `scores` names; a field of each kind, with its own choices and text."""
        asked: tuple[str, ...] = self.__dict__["scores"]
        return asked

    @model_validator(mode="after")
    def _check_twice(self) -> Scored:
        if len(set(self._asked)) < len(self._asked):
            *others, last = self.measured
            raise RecipeError(
                f"task.scores={self._asked!r} names one twice",
                expected=f"each of {', '.join(others)} and {last} at most once",
                do="correct task.scores",
            )
        return self

    def check_metric(self, metric: str) -> None:
        """As for every task; of a metric that `scores` would give, say so."""
        score = next((score for score, metrics in self.measured.items() if metric in metrics), None)
        if score is not None and score not in self._asked:
            raise RecipeError(
                f"evaluation.metric={metric!r} with task.name={self.name!r} and task.scores={self._asked!r}",
                expected=f"{score!r} in task.scores, without which {self.unmeasured}",
                do=f"set task.scores to {' '.join((*self._asked, score))}, or another evaluation.metric",
            )
        super().check_metric(metric)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a token, and what `scores` asks for."""
        asked = {metric: way for score in self._asked for metric, way in self.measured[score].items()}
        return {"loss": "falls", **asked}


class ScoredText(Scored):
    """One whose loss is that of a language model, so that its exponential is the perplexity."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a token and its exponential, and what `scores` asks for."""
        return {"loss": "falls", "perplexity": "falls", **super().metrics}
