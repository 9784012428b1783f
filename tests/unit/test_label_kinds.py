"""What the label of a text may be: which kind a data set has, what each learns, pairs of texts, and rows that cannot be used."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import BertConfig

from tests.tiny import wordpiece_tokenizer
from toolkit.data.packing import Counts
from toolkit.data.reading.described import as_described
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import SequenceClassification
from toolkit.tasks.labels.sequence_classification import SequenceClassificationTask

TOKENIZER = wordpiece_tokenizer()


def rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def fitted(given: Any, tokenizer: Any = TOKENIZER, **fields: Any) -> SequenceClassificationTask:
    task = SequenceClassificationTask(SequenceClassification(**fields), tokenizer)
    task.fit(given)
    return task


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (("a", "b"), "single_label_classification"),
        ((0, 1), "single_label_classification"),
        ((["a"], ["a", "b"], []), "multi_label_classification"),
        (([0], [1, 0]), "multi_label_classification"),
        ((0.5, 1.0, 2.0), "regression"),
        (("0.5", "1.0"), "regression"),  # as CSV has them
    ],
)
def test_the_data_decides_and_it_is_said(labels: tuple[Any, ...], problem_type: str) -> None:
    task = fitted(rows(*labels))
    assert task.config_overrides()["problem_type"] == task.options.problem_type == problem_type
    assert len(task.remarks([])) == 1
    assert {*task.options.metrics} < {*SequenceClassification().metrics}
    told = fitted(rows(*labels), problem_type=problem_type)
    assert told.config_overrides() == task.config_overrides()


def test_whole_numbers_with_a_point_are_spoilt_integers_unless_it_is_said() -> None:
    for labels in ((1.0, 2.0), ("1.0", "2.0"), (1.0, float("nan"), 2.0)):
        with pytest.raises(DataError, match="a number with a fraction"):
            fitted(rows(*labels))
    assert fitted(rows(1.0, 2.0), problem_type="regression").classes == []
    assert fitted(rows(1, 2), problem_type="regression").encode(rows(2)[0])[0]["labels"].tolist() == [2.0]


def test_several_classes_are_learned_as_flags() -> None:
    task = fitted(rows(["b"], ["a", "b"], []))
    assert task.remarks([]) == ["classes: 0 = a, 1 = b; any number of them per text; 1 of 3 rows have none of them"]
    found = [task.encode(row)[0]["labels"].tolist() for row in rows(["b"], ["a", "b"], [])]
    assert found == [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    columns = [{"text": "t", "a": 0, "b": True}, {"text": "u", "a": "1", "b": "0"}]
    of_columns = fitted(columns, label_fields=("b", "a"))
    assert of_columns.classes == ["b", "a"] and set(of_columns.columns(columns[0])) == {"text", "a", "b"}
    assert [of_columns.encode(row)[0]["labels"].tolist() for row in columns] == [[1.0, 0.0], [0.0, 1.0]]


def test_names_of_lists_of_classes_come_from_the_data_set() -> None:
    names = datasets.ClassLabel(names=["up", "down", "across"])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(names)})
    given = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [[1], [1, 0]]}, features=features)
    task = fitted(given)
    assert task.config_overrides()["id2label"] == {0: "up", 1: "down", 2: "across"}
    assert as_described(task.encode, given)(given[1])[0]["labels"].tolist() == [1.0, 1.0, 0.0]


def test_a_head_of_another_size_is_new() -> None:
    order = {0: "b", 1: "a"}
    config = BertConfig(architectures=["BertForSequenceClassification"], id2label=order, label2id={"b": 0, "a": 1})
    task = SequenceClassificationTask(SequenceClassification(), TOKENIZER)
    task.fit(rows(["a"], ["b"]), config)
    assert task.classes == ["b", "a"] and not task.new_head
    task.fit(rows(0.5, 1.5), config)
    assert task.new_head and "new head: one output instead of 2" in task.remarks([])[0]


@pytest.mark.parametrize("labels", [(["a"], ["a", "b"]), (0.5, -100.0)])
def test_fillers_have_no_label_and_no_loss(labels: tuple[Any, ...]) -> None:
    """Nor is a number that other tasks ignore by taken for none."""
    task = fitted(rows(*labels))
    examples = [task.encode(row)[0] for row in rows(*labels)]
    assert [task.targets(example) for example in examples] == [1, 1]
    real = task.collate([[example] for example in examples])
    filled = task.collate([*([example] for example in examples), [task.ignored(examples[0])]])
    assert task.count(real) == task.count(filled) == 2
    logits = torch.randn(3, filled["labels"].shape[1] if filled["labels"].dim() == 2 else 1)
    torch.testing.assert_close(
        task.kind.losses(logits, filled["labels"], 0.0), task.kind.losses(logits[:2], real["labels"], 0.0)
    )


def pairs_tokenizer(types: bool) -> Any:
    from tokenizers import processors

    tokenizer = wordpiece_tokenizer()
    if types:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


PAIR = {"text": "a list of the arguments", "other": "the file is not there and cannot be opened", "label": "x"}


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("capacity", [99, 14, 13, 12, 11, 8])
def test_a_pair_is_cut_as_the_tokenizer_cuts_it(types: bool, capacity: int) -> None:
    tokenizer = pairs_tokenizer(types)
    task = fitted([PAIR, {**PAIR, "label": "y"}], tokenizer, second_text_field="other")
    for first, second in (("text", "other"), ("other", "text")):
        row = {"text": PAIR[first], "other": PAIR[second], "label": "x"}
        counts = Counts()
        (example,) = task.fitted(task.encode(row)[0], capacity, "truncate", counts)
        wanted = tokenizer(row["text"], row["other"], truncation=True, max_length=capacity)
        assert example["input_ids"].tolist() == wanted["input_ids"]
        assert counts.truncated == (len(task.encode(row)[0]["input_ids"]) > capacity)
        batch = task.collate([[example]])
        assert ("token_type_ids" in batch) == types
        if types:
            assert batch["token_type_ids"][0].tolist() == wanted["token_type_ids"]


def test_token_types_reach_a_model_that_tells_them_apart() -> None:
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    from toolkit.models.loading import quiet

    task = fitted([PAIR, {**PAIR, "label": "y"}], pairs_tokenizer(True), second_text_field="other")
    batch = task.collate([task.encode(PAIR)])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 800, "max_position_embeddings": 64}  # fmt: skip
    moved = {}
    for kind, config in {"bert": BertConfig(**sizes), "roberta": RobertaConfig(type_vocab_size=1, **sizes)}.items():
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_config(config).eval()
        task.prepare(model)
        with torch.no_grad():
            changed = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
            moved[kind] = float(task.loss(model, batch, 1.0).total - task.loss(model, changed, 1.0).total)
    assert moved["bert"] != 0.0 and moved["roberta"] == 0.0


@pytest.mark.parametrize(
    ("good", "bad", "fields", "what"),
    [
        ((["a"], ["b"]), "a", {}, "task.label_field='label' gives 'a', with task.problem_type='multi_label_classification'"),
        ((["a"], ["b"]), [0.5], {}, "task.label_field='label' has 0.5 in its list"),
        ((["a"], ["b"]), [1, 0, 1], {}, "task.label_field='label' gives [1, 0, 1], with '1' twice"),
        ((0.5, 1.5), "x", {"problem_type": "regression"}, "task.label_field='label' is 'x', with task.problem_type='regression'"),
        ((0.5, 1.5), float("nan"), {"problem_type": "regression"}, "task.label_field='label' is nan, with"),
        ((0.5, 1.5), None, {"problem_type": "regression"}, "task.label_field='label' is None, with"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used(good: Any, bad: Any, fields: Any, what: str) -> None:
    with pytest.raises(DataError) as refused:
        fitted(rows(*good, bad), **fields)
    assert refused.value.what.startswith(f"row 3 of data.train: {what}")


def test_classes_and_columns_that_are_not_known() -> None:
    task = fitted(rows(["alpha"], ["beta"]))
    with pytest.raises(
        DataError, match=r"has 'alpa', which does not occur in the training rows \(did you mean 'alpha'"
    ):
        task.encode(rows(["alpa"])[0])
    with pytest.raises(DataError, match=r"task\.label_field='label' is not there; the columns are text"):
        fitted([{"text": "a"}], problem_type="multi_label_classification")
    with pytest.raises(DataError, match=r"'b' of task\.label_fields is 2"):
        fitted([{"text": "a", "a": 0, "b": 2}], label_fields=("a", "b"))
    with pytest.raises(DataError, match=r"label_fields='a,b' is not there \(several are separated by spaces: a b\)"):
        fitted([{"text": "a", "a": 0, "b": 1}], label_fields=("a,b",))
    with pytest.raises(DataError, match=r"task\.second_text_field='other' is not there; the columns are text, label"):
        fitted(rows("a", "b"), second_text_field="other").encode(rows("a")[0])


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"label_fields": ("a", "b"), "label_field": "c"}, "task.label_fields=('a', 'b') with task.label_field='c'"),
        ({"label_fields": ("a", "b"), "problem_type": "regression"}, "task.label_fields=('a', 'b') with task.problem_type="),
        ({"second_text_field": "b", "sample_prompt": "x"}, "task.sample_prompt='x' with task.second_text_field='b'"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other(fields: Any, what: str) -> None:
    with pytest.raises(RecipeError) as refused:
        SequenceClassification(**fields)
    assert refused.value.what.startswith(what)


def test_smoothing_is_of_one_class() -> None:
    for labels in ((["a"], ["b"]), (0.5, 1.5)):
        with pytest.raises(RecipeError, match=r"task\.label_smoothing=0\.1 with task\.problem_type="):
            fitted(rows(*labels), label_smoothing=0.1)


def test_a_metric_of_another_kind_is_refused_once_the_data_is_seen() -> None:
    task = fitted(rows("a", "b"))
    SequenceClassification().check_metric("pearson")
    with pytest.raises(RecipeError, match=r"evaluation\.metric='pearson' with task\.name='sequence_classification'"):
        task.options.check_metric("pearson")


def test_as_many_classes_as_tokens_are_not_cut_with_the_text() -> None:
    names = [f"c{number}" for number in range(6)]
    task = fitted(rows(names, names[:2]))
    (example,) = task.encode({"text": "a list of the", "label": names})
    assert len(example["input_ids"]) == len(example["labels"]) == 6
    (cut,) = task.fitted(example, 4, "truncate", Counts())
    assert len(cut["input_ids"]) == 4 and np.array_equal(cut["labels"], example["labels"])
