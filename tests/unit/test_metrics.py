"""The metrics that a recipe may name: those of the task, each with the way in which it improves."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import speech, vision
from tests.tiny import byte_tokenizer, wordpiece_tokenizer
from tests.unit.test_effect import CLASSES, HELD_OUT, recipe
from toolkit.errors import RecipeError
from toolkit.recipe import (
    DPO,
    KTO,
    ORPO,
    CausalLM,
    Custom,
    ImageClassification,
    ImageTextToText,
    MaskedLM,
    QuestionAnswering,
    RewardModel,
    SentenceEmbedding,
    Seq2Seq,
    SequenceClassification,
    SimPO,
    SpeechCTC,
    SpeechSeq2Seq,
    Task,
    TokenClassification,
)
from toolkit.tasks import task_class

Sums = dict[str, float]
Told = list[tuple[Any, Any]]
"""Pairs of what the model says and what is right."""


@dataclass(frozen=True)
class Case:
    """A task after it has seen `rows`, and two evaluations of it, a better and a worse one."""

    options: Task
    better: Sums
    worse: Sums
    rows: list[dict[str, Any]] = field(default_factory=list)
    better_told: Told = field(default_factory=list)
    worse_told: Told = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    """What else a record has."""


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "a", "label": label} for label in labels]


_BETTER = {
    "loss": 1.0, "targets": 10.0, "rewards/chosen": 5.0, "rewards/rejected": -5.0, "rewards/margins": 10.0, "rewards/accuracies": 9.0,
}  # fmt: skip
_WORSE = {
    "loss": 9.0, "targets": 10.0, "rewards/chosen": 1.0, "rewards/rejected": 1.0, "rewards/margins": 0.0, "rewards/accuracies": 4.0,
}  # fmt: skip
_OF_SPANS = {"window": 0, "score": 1.0, "no_answer_score": 0.0}
CASES = {
    **{options.name: Case(options, _BETTER, _WORSE) for options in (DPO(), ORPO(), SimPO(), RewardModel())},
    "kto": Case(
        KTO(),
        {
            "loss": 1.0,
            "targets": 10.0,
            "desirable": 5.0,
            "desirable_rewards": 5.0,
            "undesirable_rewards": -5.0,
            "right": 9.0,
        },
        {
            "loss": 9.0,
            "targets": 10.0,
            "desirable": 5.0,
            "desirable_rewards": 1.0,
            "undesirable_rewards": 1.0,
            "right": 4.0,
        },
    ),
    "causal_lm": Case(CausalLM(), {"loss": 10.0, "targets": 10.0}, {"loss": 20.0, "targets": 10.0}),
    "custom": Case(
        Custom("toolkit.examples.residues:MaskedResidues"),
        {"loss": 10.0, "targets": 10.0, "accuracy sum": 5.0, "accuracy count": 10.0},
        {"loss": 20.0, "targets": 10.0, "accuracy sum": 2.0, "accuracy count": 10.0},
    ),
    "image_text_to_text": Case(
        ImageTextToText(scores=("exact_match", "rouge")),
        {"loss": 10.0, "targets": 10.0},
        {"loss": 20.0, "targets": 10.0},
        [],
        [("one two three", "One two three")],
        [("four one three", "one two three")],
    ),
    "masked_lm": Case(
        MaskedLM(),
        {"loss": 10.0, "targets": 10.0, "correct": 5.0},
        {"loss": 20.0, "targets": 10.0, "correct": 2.0},
    ),
    "one class": Case(
        SequenceClassification(),
        {"loss": 1.0, "targets": 10.0, "correct": 9.0, "majority": 5.0},
        {"loss": 9.0, "targets": 10.0, "correct": 2.0, "majority": 5.0},
        labelled("x", "y"),
        [("x", "x"), ("y", "y")],
        [("y", "x"), ("y", "y")],
    ),
    "images": Case(
        ImageClassification(image_size=8),
        {"loss": 1.0, "targets": 10.0, "correct": 9.0, "top5": 10.0, "majority": 5.0},
        {"loss": 9.0, "targets": 10.0, "correct": 2.0, "top5": 6.0, "majority": 5.0},
        labelled("x", "y"),
        [("x", "x"), ("y", "y")],
        [("y", "x"), ("y", "y")],
    ),
    "class set": Case(
        SequenceClassification(),
        {"loss": 1.0, "targets": 10.0},
        {"loss": 9.0, "targets": 10.0},
        labelled(["x"], ["x", "y"]),
        [(["x"], ["x"]), (["x", "y"], ["x", "y"])],
        [(["x"], ["y"]), (["y"], ["x", "y"])],
    ),
    "number": Case(
        SequenceClassification(problem_type="regression"),
        {"loss": 1.0, "targets": 10.0},
        {"loss": 9.0, "targets": 10.0},
        labelled(1.0, 2.0, 3.0),
        [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)],
        [(3.0, 1.0), (2.5, 2.0), (2.0, 3.0)],
    ),
    "entities": Case(
        TokenClassification(),
        {"loss": 1.0, "targets": 10.0, "majority": 5.0},
        {"loss": 9.0, "targets": 10.0, "majority": 5.0},
        [{"words": ["a", "b"], "labels": ["B-X", "O"]}],
        [(["B-X", "O"], ["B-X", "O"])],
        [(["O", "B-X"], ["B-X", "O"])],
    ),
    "tags": Case(
        TokenClassification(),
        {"loss": 1.0, "targets": 10.0, "majority": 5.0},
        {"loss": 9.0, "targets": 10.0, "majority": 5.0},
        [{"words": ["a", "b"], "labels": ["X", "Y"]}],
        [(["X", "Y"], ["X", "Y"])],
        [(["Y", "Y"], ["X", "Y"])],
    ),
    "seq2seq": Case(
        Seq2Seq(scores=("bleu", "rouge", "chrf")),
        {"loss": 10.0, "targets": 10.0},
        {"loss": 20.0, "targets": 10.0},
        [],
        [("one two three four five", "one two three four five")],
        [("one two three four six six", "one two three four five")],
    ),
    **{
        options.name: Case(
            options,
            {"loss": 10.0, "targets": 10.0},
            {"loss": 20.0, "targets": 10.0},
            [],
            [("one two", "one two"), ("three", "three")],
            [("one too", "one two"), ("three four", "three")],
        )
        for options in (
            SpeechSeq2Seq(scores=("wer", "cer", "exact_match"), max_duration_s=1.0),
            SpeechCTC(scores=("wer", "cer", "exact_match")),
        )
    },
    "texts": Case(
        SentenceEmbedding(),
        {"loss": 10.0, "targets": 10.0, "first": 5.0, "reciprocal": 7.0},
        {"loss": 20.0, "targets": 10.0, "first": 2.0, "reciprocal": 4.0},
    ),
    "scored texts": Case(
        SentenceEmbedding(objective="cosent", score_field="score"),
        {"loss": 10.0, "targets": 10.0, "spearman": 5.0},
        {"loss": 20.0, "targets": 10.0, "spearman": 2.0},
    ),
    "question_answering": Case(
        QuestionAnswering(),
        {"loss": 1.0, "targets": 10.0},
        {"loss": 9.0, "targets": 10.0},
        [],
        [("x", ["x"]), ("y z", ["y z"])],
        [("x", ["x"]), ("y", ["z"])],
        _OF_SPANS,
    ),
}


@cache
def processor(name: str) -> Any:
    if name.startswith("speech_"):
        with tempfile.TemporaryDirectory() as folder:
            make = speech.ctc_processor if name == "speech_ctc" else speech.whisper_processor
            return make(Path(folder))
    if name == "image_text_to_text":
        return vision.llava()[1]
    return byte_tokenizer() if name == "causal_lm" else wordpiece_tokenizer()


def metrics(case: Case) -> tuple[Task, dict[str, float], dict[str, float]]:
    """The task's section once the data is seen, and the metrics of both evaluations."""
    reads = processor(case.options.name) if case.options.needs_processor else None
    task = task_class(case.options)(case.options, reads)
    task.fit(case.rows)
    found = []
    for sums, told in ((case.better, case.better_told), (case.worse, case.worse_told)):
        records = [{"prediction": said, "reference": right, **case.more} for said, right in told]
        found.append(task.metrics(defaultdict(float, sums)) | (task.score(records) if task.makes_records else {}))
    return task.options, found[0], found[1]


def test_every_task_has_a_case() -> None:
    assert {case.options.name for case in CASES.values()} == {*Task.kinds}


@pytest.mark.parametrize("name", CASES)
def test_directions_are_those_of_the_metrics_themselves(name: str) -> None:
    options, better, worse = metrics(CASES[name])
    assert {*options.metrics} == {*better}
    assert {*options.metrics} <= {*CASES[name].options.metrics}, "what may be asked for before the data is seen"
    for metric in better:
        same = better[metric] == worse[metric]
        found = "stays" if same else ("rises" if better[metric] > worse[metric] else "falls")
        assert options.metrics[metric] == found, metric
        if found != "stays":
            options.check_metric(metric)
            assert options.higher_is_better(metric) == (found == "rises")


@pytest.mark.parametrize(
    ("task", "metric", "what", "expected"),
    [
        ("causal_lm", "accuracy", "evaluation.metric='accuracy' with task.name='causal_lm'", "one of loss, perplexity"),
        (
            "sequence_classification",
            "acuracy",
            "evaluation.metric='acuracy' with task.name='sequence_classification' (did you mean 'accuracy'?)",
            "one of loss, accuracy, f1_macro, mcc, f1_micro, pearson, spearman",
        ),
        (
            "sequence_classification",
            "majority_accuracy",
            "evaluation.metric='majority_accuracy' with task.name='sequence_classification' (it does not depend on the model)",
            "one of loss, accuracy, f1_macro, mcc, f1_micro, pearson, spearman",
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

    fields = {"evaluation.every_steps": 5, "evaluation.metric": "rouge", "checkpoint.keep_best": True}
    with pytest.raises(RecipeError, match=r"evaluation\.metric='rouge'"):
        prepare_inputs(recipe({**fields, **HELD_OUT, **CLASSES}), 0, 1, Display(is_main=False))
