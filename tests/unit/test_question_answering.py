"""Answers that are spans: windows as tokenizers make them, the best span of all, and rows that cannot be used."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import documented, wordpiece_tokenizer
from toolkit.data.packing import Counts
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import QuestionAnswering
from toolkit.tasks.questions.question_answering import QuestionAnsweringTask
from toolkit.tasks.questions.spans import as_text, best_spans, texts_of, windows

TOKENIZER = wordpiece_tokenizer()
CONTEXT = " ".join(" ".join(text.split()) for _, _, text in documented()[:4])[:900]


def task(**fields: Any) -> QuestionAnsweringTask:
    return QuestionAnsweringTask(QuestionAnswering(**fields), TOKENIZER)


def row(answer: str = "", question: str = "What is it?", context: str = CONTEXT) -> dict[str, Any]:
    answers = (
        {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"question": question, "context": context, "answers": answers}


@pytest.mark.parametrize(("capacity", "stride"), [(64, 16), (50, 0), (33, 20)])
def test_windows_are_those_of_the_tokenizer(capacity: int, stride: int) -> None:
    one = task(doc_stride=stride)
    words = CONTEXT.split()
    answer = " ".join(words[60:63])
    (example,) = one.encode(row(answer))
    counts = Counts()
    parts = one.fitted(example, capacity, "split", counts)
    wanted = TOKENIZER(
        "What is it?", CONTEXT, truncation="only_second", max_length=capacity, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert [part["input_ids"].tolist() for part in parts] == wanted["input_ids"] and len(parts) > 3
    assert counts.split == 1 and [int(part["window"][0]) for part in parts] == [*range(len(parts))]
    start = CONTEXT.index(answer)
    found = 0
    for number, part in enumerate(parts):
        first, last = map(int, part["span"])
        offsets, inside = wanted["offset_mapping"][number], wanted.sequence_ids(number)
        places = [place for place, text in enumerate(inside) if text == 1]
        frame = (places[0], places[-1] + 1)
        assert tuple(part["frame"]) == frame
        context = as_text(part["context"])
        assert context == CONTEXT[offsets[frame[0]][0] : offsets[frame[1] - 1][1]]
        whole = offsets[frame[0]][0] <= start and start + len(answer) <= offsets[frame[1] - 1][1]
        assert ((first, last) != (0, 0)) == whole, "the first token where the window has not all of it"
        if whole:
            found += 1
            assert context[part["offsets"][first, 0] : part["offsets"][last, 1]] == answer
        assert texts_of(part["answers"]) == [answer]
    assert found >= (stride > 0), "without shared tokens a border may cut every answer"


def test_a_context_that_is_too_long_is_not_cut_in_silence() -> None:
    (example,) = task().encode(row("the"))
    with pytest.raises(DataError, match="could cut the answer away") as refused:
        task().fitted(example, 64, "truncate", Counts())
    assert "set data.overlong='split'" in refused.value.do
    assert task().fitted(example, 64, "drop", Counts()) == []
    with pytest.raises(
        DataError, match=r"a question leaves 56 of batch\.sequence_length=64 tokens .*task\.doc_stride=128"
    ):
        task().fitted(example, 64, "split", Counts())
    assert task().fitted(example, 1000, "truncate", Counts()) == [example]


@pytest.mark.parametrize(("length", "room", "shared"), [(10, 4, 1), (10, 4, 3), (4, 4, 1), (3, 9, 2), (9, 3, 0)])
def test_windows_cover_all_and_share_as_much_as_is_said(length: int, room: int, shared: int) -> None:
    found = list(windows(length, room, shared))
    assert found[0][0] == 0 and found[-1][1] == length and all(stop - start <= room for start, stop in found)
    assert all(before[1] - after[0] == shared for before, after in pairwise(found))


def test_the_best_span_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(6, 12, generator=generator), torch.randn(6, 12, generator=generator)
    frames = torch.tensor([[2, 11], [0, 12], [5, 6], [3, 9], [1, 4], [4, 12]])
    spans, scores = best_spans(start, end, frames, 3)
    for index, (low, high) in enumerate(frames.tolist()):
        every = {
            (first, last): float(start[index, first] + end[index, last])
            for first in range(low, high)
            for last in range(first, min(high, first + 3))
        }
        assert spans[index] == max(every, key=lambda span: every[span])
        assert scores[index] == every[spans[index]]


def record(prediction: str, window: int, score: float, nothing: float, *reference: str) -> dict[str, Any]:
    return {"prediction": prediction, "reference": list(reference), "window": window, "score": score, "no_answer_score": nothing}  # fmt: skip


def test_the_best_answer_over_the_windows_of_a_question_counts() -> None:
    records = [
        record("wrong", 0, 1.0, 5.0, "the right one"), record("right one", 1, 2.0, 0.5, "the right one"),
        record("other", 0, 1.0, 3.0, "no", "another"),
        record("said", 0, 1.0, 1.5),
    ]  # fmt: skip
    assert task().score(records[:3]) == {"exact_match": 50.0, "f1": 50.0}
    # The third is answered with nothing: 3.0 - 1.0 exceeds the threshold; so is the fourth, which has no answer, at 0.
    assert task(unanswerable=True).score(records) == pytest.approx({"exact_match": 200 / 3, "f1": 200 / 3})
    strict = task(unanswerable=True, null_threshold=1.0).score(records)
    assert strict == pytest.approx({"exact_match": 100 / 3, "f1": 100 / 3})


def test_no_answer_is_the_first_token() -> None:
    (example,) = task(unanswerable=True).encode(row())
    assert example["span"].tolist() == [0, 0] and texts_of(example["answers"]) == []
    assert task().targets(example) == 1
    assert (task().ignored(example)["span"] == -100).all()


@pytest.mark.parametrize(
    ("given", "what", "do"),
    [
        (row(), "task.answers_field='answers' has no answer", "set task.unanswerable=True"),
        (
            row() | {"answers": {"text": ["list"], "answer_start": [3]}, "context": "a list of lists"},
            "answer 1 of task.answers_field='answers' is 'list' at 3, where context has 'ist '; it is at 2",
            "correct answer_start (it counts characters, not bytes)",
        ),
        (
            row() | {"answers": {"text": ["tuple"], "answer_start": [0]}, "context": "a list"},
            "answer 1 of task.answers_field='answers' is 'tuple' at 0, where context has 'a lis'; it is nowhere in context",
            "correct answer_start",
        ),
        (
            row() | {"answers": {"text": ["a"], "answer_start": [-1]}, "context": "la"},
            "answer 1 of task.answers_field='answers' is 'a' at -1",
            "correct answer_start",
        ),
        (row() | {"answers": {"text": [""], "answer_start": [0]}}, "answer 1 of task.answers_field='answers' is '' at 0", ""),
        (row() | {"answers": {"text": ["a"], "answer_start": []}}, "task.answers_field='answers' gives {'text': ['a'], 'answer", ""),
        (row() | {"answers": "a"}, "task.answers_field='answers' gives 'a'", ""),
        (row() | {"question": " "}, "task.question_field='question' is empty", ""),
        (row() | {"context": None}, "task.context_field='context' is null", ""),
        ({"question": "q", "context": "c"}, "task.answers_field='answers' is not there; the columns are question, context", ""),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(given: dict[str, Any], what: str, do: str) -> None:
    with pytest.raises(DataError) as refused:
        task().encode(given)
    assert refused.value.what.startswith(what)
    assert do in refused.value.do


def test_answers_may_be_a_list_of_objects() -> None:
    given = row() | {
        "context": "a list",
        "answers": [{"text": "list", "answer_start": 2}, {"text": "a list", "answer_start": 0}],
    }
    (example,) = task().encode(given)
    assert texts_of(example["answers"]) == ["list", "a list"]
    first, last = example["span"]
    assert TOKENIZER.decode(example["input_ids"][first : last + 1]) == "list"


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast, pad_token_id, name_or_path = False, 0, "somewhere"

    slow: Any = Slow()
    with pytest.raises(RecipeError, match="the tokenizer at 'somewhere' does not say where in the text a token stands"):
        QuestionAnsweringTask(QuestionAnswering(), slow)


def test_padding_is_no_place_for_an_answer() -> None:
    """The loss of a window is the same whatever it is filled up to."""
    one = task()
    long, short = one.encode(row("the"))[0], one.encode(row("list", context="a list"))[0]

    class Scores:
        config = type("Config", (), {"_attn_implementation": "sdpa"})

        def forward(self, token_type_ids: Any) -> None: ...

        def __call__(self, input_ids: Any, **inputs: Any) -> Any:
            scores = torch.sin(torch.arange(input_ids.shape[1])).expand(input_ids.shape) + 3.0
            return type("Output", (), {"start_logits": scores, "end_logits": scores * 0.5})

    model: Any = Scores()
    model.base_model = model
    alone, both = (
        one.loss(model, one.collate(rows), 1.0).total for rows in ([[short]], [[short], [one.ignored(long)]])
    )
    torch.testing.assert_close(alone, both)
    assert np.isfinite(float(alone)) and float(alone) > 0
