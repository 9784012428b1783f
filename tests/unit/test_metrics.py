"""The metrics that a recipe may name: those of the task, each with the way in which it improves."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest

from tests.unit.test_effect import CLASSES, HELD_OUT, recipe
from toolkit.errors import RecipeError
from toolkit.recipe import Task
from toolkit.tasks import task_class

BETTER = {
    "causal_lm": {"loss": 10.0, "targets": 10.0},
    "sequence_classification": {"loss": 1.0, "targets": 10.0, "correct": 9.0, "majority": 5.0},
}
WORSE = {
    "causal_lm": {"loss": 20.0, "targets": 10.0},
    "sequence_classification": {"loss": 9.0, "targets": 10.0, "correct": 2.0, "majority": 5.0},
}


@pytest.mark.parametrize("task", Task.kinds)
def test_directions_are_those_of_the_metrics_themselves(task: str) -> None:
    options, self = Task.kind(task)(), SimpleNamespace()
    better, worse = (task_class(options).metrics(self, defaultdict(float, sums[task])) for sums in (BETTER, WORSE))  # type: ignore[arg-type]
    assert list(options.metrics) == list(better)
    for name in better:
        found = "stays" if better[name] == worse[name] else ("rises" if better[name] > worse[name] else "falls")
        assert options.metrics[name] == found
        if found != "stays":
            options.check_metric(name)
            assert options.higher_is_better(name) == (found == "rises")


@pytest.mark.parametrize(
    ("task", "metric", "what", "expected"),
    [
        ("causal_lm", "accuracy", "evaluation.metric='accuracy' with task.name='causal_lm'", "one of loss, perplexity"),
        (
            "sequence_classification",
            "acuracy",
            "evaluation.metric='acuracy' with task.name='sequence_classification' (did you mean 'accuracy'?)",
            "one of loss, accuracy",
        ),
        (
            "sequence_classification",
            "majority_accuracy",
            "evaluation.metric='majority_accuracy' with task.name='sequence_classification' (it does not depend on the model)",
            "one of loss, accuracy",
        ),
    ],
)
def test_no_such_target(task: str, metric: str, what: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Task.kind(task)().check_metric(metric)
    assert (caught.value.what, caught.value.expected) == (what, expected)


def test_it_is_refused_before_anything_is_loaded() -> None:
    """The recipe's model and data do not exist: neither has been looked for."""
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    fields = {"evaluation.every_steps": 5, "evaluation.metric": "f1", "checkpoint.keep_best": True}
    with pytest.raises(RecipeError, match=r"evaluation\.metric='f1'"):
        prepare_inputs(recipe({**fields, **HELD_OUT, **CLASSES}), 0, 1, Display(is_main=False))
