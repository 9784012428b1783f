"""What can be learned: one file per task, found by name. Importing this package imports no torch.

To add a task, write toolkit/tasks/NAME.py with one class that follows `protocol.Task` and list it here, with its metrics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from toolkit.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from toolkit.tasks.protocol import Task

Direction = Literal["falls", "rises", "stays"]

TASKS = {
    "causal_lm": "toolkit.tasks.causal_lm:CausalLM",
    "sequence_classification": "toolkit.tasks.sequence_classification:SequenceClassification",
}

METRICS: dict[str, dict[str, Direction]] = {
    "causal_lm": {"loss": "falls", "perplexity": "falls"},
    "sequence_classification": {"loss": "falls", "accuracy": "rises", "majority_accuracy": "stays"},
}
"""Task -> the metrics of its evaluation, and what each does as the model improves ("stays": it does not depend on the
model). They stand here so that a wrong name is found before torch is imported."""


def check_metric(task: str, metric: str) -> None:
    """Raise RecipeError when an evaluation of `task` has no `metric` that could improve."""
    targets = [name for name, direction in METRICS[task].items() if direction != "stays"]
    if metric not in targets:
        why = " (it does not depend on the model)" if metric in METRICS[task] else did_you_mean(metric, targets)
        raise RecipeError(
            f"evaluation.metric={metric!r} with task.name={task!r}{why}",
            expected=f"one of {', '.join(targets)}",
            do="correct evaluation.metric",
        )


def higher_is_better(task: str, metric: str) -> bool:
    """Whether `metric` rises as the model improves."""
    return METRICS[task][metric] == "rises"


def check_task(name: str) -> None:
    """Raise RecipeError when there is no task called `name`."""
    if name not in TASKS:
        raise RecipeError(
            f"task.name={name!r}{did_you_mean(name, TASKS)}",
            expected=f"one of {', '.join(TASKS)}",
            do="correct task.name",
        )


def task_class(name: str) -> type[Task]:
    """The class behind task `name`."""
    check_task(name)
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(importlib.import_module(module), attribute)
    return found
