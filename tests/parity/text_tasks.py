"""Rows for each task of encoders, and its metrics by plain transformers: pipelines and models of an export, text by text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import documented
from toolkit.recipe import MaskedLM, QuestionAnswering, SequenceClassification, Task, TokenClassification

Rows = list[dict[str, Any]]
Metrics = dict[str, float]
LENGTH = 96
"""Tokens of the longest example."""


def texts(count: int = 96) -> list[tuple[str, str, str]]:
    """(name, kind, text), texts of very different lengths."""
    found = enumerate(documented()[:count])
    return [(name, kind, text[: 40 + 41 * (number % 9)]) for number, (name, kind, text) in found]


def plain() -> Rows:
    return [{"text": text} for _, _, text in texts()]


def classes() -> Rows:
    return [{"text": text, "label": kind} for _, kind, text in texts()]


def pairs() -> Rows:
    return [{"first": name, "second": text, "label": int("e" in name[-2:])} for name, _, text in texts()]


def sets() -> Rows:
    found = []
    for name, kind, text in texts():
        marks = {"class": kind == "class", "long": len(text) > 200, "private": "_" in name, "returns": "eturn" in text}
        found.append({"text": text, "label": [mark for mark, holds in marks.items() if holds]})
    return found


def flags() -> Rows:
    names = ("class", "long", "returns")
    return [{"text": row["text"], **{name: int(name in row["label"]) for name in names}} for row in sets()]


def scores() -> Rows:
    return [{"text": text, "label": len(text) / 128 + 0.25} for _, _, text in texts()]


def entities() -> Rows:
    """Capitals are names; one that follows another goes on with it."""
    found = []
    for _, _, text in texts():
        words = text.split()
        big = [word[0].isupper() for word in words]
        tags = [
            "O" if not now else "I-NAME" if before else "B-NAME"
            for now, before in zip(big, [False, *big], strict=False)
        ]
        found.append({"words": words, "labels": tags})
    return found


def tags() -> Rows:
    return [{"tokens": row["words"], "tags": [min(3, len(word) // 3) for word in row["words"]]} for row in entities()]


def questions() -> Rows:
    """The answer is a stretch of words in the middle of a text, which is long in every third row."""
    found = []
    for number, (name, _, text) in enumerate(texts(72)):
        words = documented()[number][2].split()[:150] if number % 3 == 0 else text.split()
        middle = len(words) // 2
        context = " ".join(words)
        start = len(" ".join(words[:middle])) + (middle > 0)
        answer = " ".join(words[middle : middle + 3])
        answers = {"text": [answer], "answer_start": [start]} if number % 5 else {"text": [], "answer_start": []}
        found.append({"question": f"What is {name}?", "context": context, "answers": answers})
    return found


def answered() -> Rows:
    return [row for row in questions() if row["answers"]["text"]]


def plain_masked_lm(export: Path, inputs: Any, rows: Rows) -> Metrics:
    """Of the texts with what an evaluation hides of them, each by itself."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(export, dtype=torch.float64)
    loss, right, count = 0.0, 0, 0
    for index in range(len(inputs.held_out)):
        drawn = inputs.task.transform(
            inputs.held_out[index], np.random.Generator(np.random.PCG64([0, 0, index])), is_trained=False
        )
        labels = torch.as_tensor(drawn["labels"]).long()
        with torch.no_grad():
            logits = model(input_ids=torch.as_tensor(drawn["input_ids"]).long()[None]).logits[0]
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
        right += int((logits.argmax(-1) == labels).sum())
        count += int((labels != -100).sum())
    _fill(model, export, inputs.task.tokenizer)
    return {"loss": loss / count, "perplexity": math.exp(loss / count), "accuracy": right / count}


def _fill(model: Any, export: Path, tokenizer: Any) -> None:
    """A sample is what transformers' pipeline puts in the place of the mask."""
    from transformers import pipeline

    from toolkit.tasks.language.masked_lm import MaskedLMTask

    prompt = "the [MASK] of the list"
    (best,) = pipeline("fill-mask", model=str(export), top_k=1)(prompt)
    sampled = MaskedLMTask(MaskedLM(sample_prompt=prompt), tokenizer).sample(model, None)  # type: ignore[arg-type]
    assert sampled == prompt.replace("[MASK]", best["token_str"].strip())


def _logits(export: Path, rows: Rows) -> list[dict[str, float]]:
    """Output by label of each row, by transformers' pipeline."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(export), top_k=None, function_to_apply="none")
    found = []
    for row in rows:
        text: Any = row["text"] if "text" in row else {"text": row["first"], "text_pair": row["second"]}
        said = classify(text, truncation=True, max_length=LENGTH)
        # Of a plain text it makes a batch of one.
        found.append({one["label"]: one["score"] for one in (said[0] if isinstance(said[0], list) else said)})
    return found


def plain_classes(export: Path, inputs: Any, rows: Rows) -> Metrics:
    from sklearn import metrics

    wanted, told, loss = [], [], 0.0
    for row, logits in zip(rows, _logits(export, rows), strict=True):
        right = str(row["label"])
        wanted.append(right)
        told.append(max(logits, key=lambda name: logits[name]))
        loss += math.log(sum(map(math.exp, logits.values()))) - logits[right]
    return {
        "loss": loss / len(rows),
        "accuracy": metrics.accuracy_score(wanted, told),
        "f1_macro": metrics.f1_score(wanted, told, average="macro"),
        "mcc": metrics.matthews_corrcoef(wanted, told),
    }


def plain_sets(export: Path, inputs: Any, rows: Rows) -> Metrics:
    from sklearn import metrics

    outputs = _logits(export, rows)
    names = sorted(outputs[0])
    logits = np.array([[row[name] for name in names] for row in outputs])
    wanted = np.array([[int(name in row["label"] if "label" in row else row[name]) for name in names] for row in rows])
    losses = np.where(wanted == 1, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))
    told = (1 / (1 + np.exp(-logits)) > 0.5).astype(int)
    return {
        "loss": float(losses.mean()),
        "accuracy": float((wanted == told).all(1).mean()),
        "f1_micro": metrics.f1_score(wanted, told, average="micro"),
        "f1_macro": metrics.f1_score(wanted, told, average="macro", zero_division=0),
    }


def plain_numbers(export: Path, inputs: Any, rows: Rows) -> Metrics:
    """After so short a run the outputs are nearly one number, so their correlations magnify rounding: they are taken of the
    outputs that the run has recorded, which have to be those of the pipeline."""
    outputs = [next(iter(logits.values())) for logits in _logits(export, rows)]
    last = max((export.parent / "predictions").glob("step-*.jsonl"), key=lambda path: int(path.stem.split("-")[1]))
    told = [json.loads(line)["prediction"] for line in last.read_text(encoding="utf-8").splitlines()]
    assert told == pytest.approx(outputs, rel=1e-5)
    wanted = np.array([row["label"] for row in rows])
    ranks = [np.argsort(np.argsort(values)) for values in (told, wanted)]  # rows with equal labels would share a rank
    return {
        "loss": float(np.square(np.array(outputs) - wanted).mean()),
        "pearson": float(np.corrcoef(told, wanted)[0, 1]),
        **({"spearman": float(np.corrcoef(*ranks)[0, 1])} if len(set(wanted)) == len(wanted) else {}),
    }


def plain_words(export: Path, inputs: Any, rows: Rows) -> Metrics:
    """The class that transformers' pipeline tells where each word begins; rows that fit."""
    from seqeval.metrics import f1_score
    from sklearn import metrics
    from transformers import pipeline

    tell = pipeline("token-classification", model=str(export), ignore_labels=[])
    wanted, told = [], []
    for row in rows:
        words = row.get("words", row.get("tokens"))
        labels = list(map(str, row.get("labels", row.get("tags"))))
        said = {piece["start"]: piece["entity"] for piece in tell(" ".join(words))}
        starts = [len(" ".join(words[:number])) + (number > 0) for number in range(len(words))]
        told.append([said[start] for start in starts])
        wanted.append(labels)
    flat = [[label for row in some for label in row] for some in (wanted, told)]
    found = {"accuracy": metrics.accuracy_score(*flat)}
    if "words" in rows[0]:
        return {**found, "f1": f1_score(wanted, told)}
    return {**found, "f1_macro": metrics.f1_score(*flat, average="macro", zero_division=0)}


def plain_answers(export: Path, inputs: Any, rows: Rows) -> Metrics:
    """Windows by the tokenizer, every span of each in turn."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    model = AutoModelForQuestionAnswering.from_pretrained(export, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(export)
    options = inputs.task.options
    exact = []
    for row in rows:
        windows = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=LENGTH, stride=options.doc_stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        best, nothing = (-math.inf, ""), math.inf
        for number, ids in enumerate(windows["input_ids"]):
            with torch.no_grad():
                found = model(input_ids=torch.tensor([ids]))
            start, end = found.start_logits[0].tolist(), found.end_logits[0].tolist()
            nothing = min(nothing, start[0] + end[0])
            inside = [place for place, text in enumerate(windows.sequence_ids(number)) if text == 1]
            offsets = windows["offset_mapping"][number]
            for first in inside:
                for last in inside:
                    if first <= last < first + options.max_answer_tokens and start[first] + end[last] > best[0]:
                        best = start[first] + end[last], row["context"][offsets[first][0] : offsets[last][1]]
        told = "" if options.unanswerable and nothing > best[0] else best[1]
        wanted = row["answers"]["text"] or [""]
        exact.append(any(_bare(told) == _bare(text) for text in wanted))
    return {"exact_match": 100 * sum(exact) / len(exact)}


def _bare(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace() or ord(letter) > 127)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


@dataclass(frozen=True)
class Case:
    """A task, its rows, and what its figures must be."""

    task: Task
    rows: Callable[[], Rows]
    plain: Callable[[Path, Any, Rows], Metrics]
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the data section."""


CASES = {
    "masked_lm": Case(MaskedLM(), plain, plain_masked_lm),
    "masked_lm-packed": Case(
        MaskedLM(whole_word=True, mask_probability=0.3), plain, plain_masked_lm, {"packing": True, "overlong": "split"}
    ),
    "one_class": Case(SequenceClassification(), classes, plain_classes),
    "one_class-pairs": Case(
        SequenceClassification(text_field="first", second_text_field="second"), pairs, plain_classes
    ),
    "class_set": Case(SequenceClassification(), sets, plain_sets),
    "class_set-flags": Case(SequenceClassification(label_fields=("class", "long", "returns")), flags, plain_sets),
    "number": Case(SequenceClassification(), scores, plain_numbers),
    "entities": Case(TokenClassification(), entities, plain_words, {"overlong": "drop"}),
    "tags": Case(
        TokenClassification(words_field="tokens", labels_field="tags", label_all_tokens=True, label_smoothing=0.1),
        tags,
        plain_words,
        {"overlong": "drop"},
    ),
    "answers": Case(QuestionAnswering(doc_stride=16), answered, plain_answers, {"overlong": "split"}),
    "answers-or-none": Case(
        QuestionAnswering(doc_stride=24, unanswerable=True, max_answer_tokens=9),
        questions,
        plain_answers,
        {"overlong": "split"},
    ),
}


def fits(inputs: Any, rows: Rows) -> Rows:
    """The rows that data.overlong='drop' leaves."""
    from toolkit.data.reading.described import as_described

    encode = as_described(inputs.task.encode, rows)
    return [row for row in rows if inputs.task.size(encode(row)[0]) <= LENGTH]
