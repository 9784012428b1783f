"""The best evaluation so far, and what it was measured with: a number means nothing to another metric or other data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs

HELD_OUT = ("held_out", "sequences", "limit")
WHAT = {
    "metric": "evaluation.metric",
    "held_out": "the held-out set",
    "sequences": "the held-out set",
    "limit": "evaluation.max_sequences",
}
"""Field of the owner -> what changed when it differs."""


@dataclass
class Watch:
    """The best evaluation so far, for early stopping and the best checkpoint."""

    metric: str
    higher_is_better: bool
    held_out: str | None = None
    """Digest of the held-out examples."""
    sequences: int = 0
    """Held-out sequences."""
    limit: int | None = None
    """Most of them that are evaluated."""
    best: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    first: dict[str, float] | None = None
    """The run's first evaluation on this held-out set, with its step."""

    def observe(self, value: float, step: int) -> bool:
        """Whether `value` is the best so far; one that is not finite never is."""
        better = math.isfinite(value) and (
            self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        )
        if better:
            self.best, self.best_step, self.bad_evaluations = value, step, 0
        else:
            self.bad_evaluations += 1
        return better

    @property
    def best_so_far(self) -> str:
        """In words."""
        return "none was finite" if self.best is None else f"best {self.best:.4f} at step {self.best_step}"

    @property
    def owner(self) -> dict[str, Any]:
        """What the numbers were measured with."""
        return {name: getattr(self, name) for name in ("metric", *HELD_OUT)}

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        numbers = {name: getattr(self, name) for name in ("best", "best_step", "bad_evaluations", "first")}
        return {"owner": self.owner, **numbers}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of a watch with the same owner."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.bad_evaluations, self.first = state["bad_evaluations"], state["first"]

    def owns(self, state: Mapping[str, Any]) -> bool:
        """Whether the numbers in `state` may be compared with this watch's."""
        return bool(state["owner"] == self.owner)

    def take(self, state: Mapping[str, Any], *, kept: Sequence[int] | None) -> str:
        """Continue from `state()` of an earlier start, as far as it belongs to this watch; what to say about the rest.

        `kept`: steps whose checkpoints exist, where the best one is kept; None where none is.
        """
        best = (
            f"{state['owner']['metric']} {state['best']:.4g} at step {state['best_step']}" if _has_best(state) else ""
        )
        if not self.owns(state):
            if all(state["owner"][name] == self.owner[name] for name in HELD_OUT):
                self.first = state["first"]
            changed = dict.fromkeys(WHAT[name] for name in self.owner if state["owner"][name] != self.owner[name])
            return f"{' and '.join(changed)} changed: best so far was {best}; {self.metric} starts anew" if best else ""
        self.load(state)
        if best and kept is not None and self.best_step not in kept:
            self.best, self.best_step, self.bad_evaluations = None, 0, 0
            return f"best so far was {best}, whose checkpoint was not kept or stays behind; {self.metric} starts anew"
        return ""


def _has_best(state: Mapping[str, Any]) -> bool:
    return state["best"] is not None


def watch_of(recipe: Recipe, inputs: Inputs) -> Watch:
    """A watch for the metric and the held-out set of this run."""
    evaluation, held_out = recipe.evaluation, inputs.held_out
    return Watch(
        evaluation.metric,
        recipe.task.higher_is_better(evaluation.metric),
        held_out=held_out.digest if held_out is not None else None,
        sequences=len(inputs.held_out_sequences),
        limit=evaluation.max_sequences,
    )
