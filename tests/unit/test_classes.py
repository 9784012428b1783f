"""Which output of a head stands for which label: the checkpoint's own order wins, or it is said that it does not."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from transformers import AutoConfig, BertConfig, LlamaConfig

from tests import tiny
from toolkit.data.example import Example, Row
from toolkit.data.reading.class_names import class_names
from toolkit.data.reading.described import as_described
from toolkit.data.reading.row_names import plain_names
from toolkit.errors import DataError, RecipeError
from toolkit.models.config import load_config
from toolkit.recipe import Model, SequenceClassification
from toolkit.tasks.labels.classes import Head, alike, head_of, in_order, match, number
from toolkit.tasks.labels.sequence_classification import SequenceClassificationTask

SENTIMENT = Head(3, ("negative", "neutral", "positive"))
NAMELESS = Head(3, None)
TOKENIZER = tiny.wordpiece_tokenizer()


def outputs(labels: list[str], head: Head, wanted: int | None = None) -> list[int | None]:
    classes = match(labels, head, {"num_labels": wanted})
    assert not classes.new_head and classes.remark is not None and classes.remark.startswith("head kept")
    return [classes.index(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "head", "found"),
    [
        (["negative", "neutral", "positive"], Head(3, ("positive", "negative", "neutral")), [1, 2, 0]),
        (["positive"], SENTIMENT, [2]),
        (["NEUTRAL", "Positive "], SENTIMENT, [1, 2]),
        (["0", "1", "2"], SENTIMENT, [0, 1, 2]),
        (["0", "2"], SENTIMENT, [0, 2]),
        (["0", "1", "2"], NAMELESS, [0, 1, 2]),
        (["False", "True"], Head(2, ("no", "yes")), [0, 1]),
        (["1", "2", "3"], Head(3, ("3", "2", "1")), [2, 1, 0]),
        (["LABEL_0", "LABEL_10", "LABEL_2"], Head(11, None), [0, 10, 2]),
    ],
)
def test_labels_of_a_head_keep_their_outputs(labels: list[str], head: Head, found: list[int]) -> None:
    assert outputs(labels, head) == found


def test_what_is_kept_is_said() -> None:
    assert match(["neutral", "positive"], SENTIMENT).remark == (
        "head kept, with the checkpoint's order: 0 = negative, 1 = neutral, 2 = positive; not in the training rows: negative"
    )
    assert "the data's numbers taken for the checkpoint's" in str(match(["0", "1", "2"], SENTIMENT).remark)
    assert "matched without regard to case" in str(match(["Neutral"], SENTIMENT).remark)
    assert "this order is a guess" in str(match(["a", "b", "c"], NAMELESS).remark)


@pytest.mark.parametrize(
    ("labels", "head", "remark"),
    [
        (["class", "function"], SENTIMENT, "2 classes (class, function) instead of the checkpoint's 3 (negative, neutral, positive)"),
        (["a", "b"], NAMELESS, "2 classes (a, b) instead of the checkpoint's 3"),
        (["0", "1"], SENTIMENT, "2 classes (0, 1) instead of the checkpoint's 3 (negative, neutral, positive)"),
        (["0", "1", "2", "3"], NAMELESS, "4 classes (0, 1, 2, 3) instead of the checkpoint's 3"),
        (["007", "012"], NAMELESS, "2 classes (007, 012) instead of the checkpoint's 3"),
    ],
)  # fmt: skip
def test_other_classes_get_a_new_head_aloud(labels: list[str], head: Head, remark: str) -> None:
    classes = match(labels, head)
    assert classes.new_head and classes.names == tuple(labels) and classes.remark == f"new head: {remark}"
    assert [classes.index(label) for label in labels] == list(range(len(labels)))


def test_num_labels_of_the_recipe_decides() -> None:
    assert outputs(["0", "1"], SENTIMENT, wanted=3) == [0, 1]
    assert match(["neutral", "positive"], SENTIMENT, {"num_labels": 2}).new_head
    assert match(["neutral", "negative", "positive", "irony"], SENTIMENT, {"num_labels": 4}).new_head
    with pytest.raises(RecipeError, match=r"num_labels=5; the data has 2 classes: a, b") as refused:
        match(["a", "b"], SENTIMENT, {"num_labels": 5})
    assert refused.value.expected == "2 or 3"
    with pytest.raises(RecipeError, match="whose classes are not the data's: a, b"):
        match(["a", "b"], SENTIMENT, {"num_labels": 3})


@pytest.mark.parametrize(
    ("labels", "foreign"),
    [(["negative", "netural", "positive"], "netural"), (["irony", "negative", "neutral", "positive"], "irony")],
)
def test_some_classes_of_a_head_and_some_others_are_refused(labels: list[str], foreign: str) -> None:
    with pytest.raises(DataError) as refused:
        match(labels, SENTIMENT)
    assert f"does not have: {foreign} (all: {', '.join(labels)})" in refused.value.what
    assert refused.value.expected == "the classes of the checkpoint: 0 = negative, 1 = neutral, 2 = positive"
    assert ("set num_labels=4" in refused.value.do) == (len(labels) == 4)


POLAR = Head(2, ("NEGATIVE", "POSITIVE"))


@pytest.mark.parametrize("labels", [["neg", "pos"], ["pos", "neg"], ["3", "7"], ["--3", "a"]])
def test_a_trained_head_of_the_same_size_is_not_lost_unasked(labels: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        match(labels, POLAR)
    assert refused.value.what.endswith(
        f"none of the classes of the checkpoint's head, but as many: {', '.join(labels)}"
    )
    assert refused.value.expected == "the classes of the checkpoint: 0 = NEGATIVE, 1 = POSITIVE"
    assert "id2label" in refused.value.do and "set num_labels=2 in model.config to train a new head" in refused.value.do
    new = match(labels, POLAR, {"num_labels": 2})
    assert new.new_head and "2 classes instead of" in str(new.remark).replace(f" ({', '.join(labels)})", "")


def test_the_recipe_names_the_outputs_of_a_head(tmp_path: Path) -> None:
    """Both ways out that the refusal names, up to the config of the model."""
    polar = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    BertConfig(architectures=["BertForSequenceClassification"], **polar).save_pretrained(tmp_path)
    stored = AutoConfig.from_pretrained(tmp_path)
    rows = [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]
    task = SequenceClassificationTask(SequenceClassification(), TOKENIZER)
    for fields, classes, is_new in (
        ({"id2label": '{"0": "neg", "1": "pos"}'}, ["neg", "pos"], False),
        ({"id2label": '{"0": "pos", "1": "neg"}'}, ["pos", "neg"], False),
        ({"num_labels": 2}, ["neg", "pos"], True),
    ):
        task.fit(rows, stored, fields)
        assert (task.classes, task.new_head) == (classes, is_new)
        config = load_config(
            Model(path=str(tmp_path), config=fields), vocabulary_size=9, overrides=task.config_overrides()
        )
        assert config.id2label == dict(enumerate(classes))


@pytest.mark.parametrize("label", ["--3", "-", "\u0663", "9" * 5000, "1_0", "007", ""])
def test_what_is_no_number(label: str) -> None:
    assert number(label) is None
    assert in_order([label, "a"]) == sorted([label, "a"])


def test_numbers_that_count_from_one_are_refused() -> None:
    with pytest.raises(DataError, match=r"does not have: 3 \(all: 1, 2, 3\)"):
        match(["1", "2", "3"], SENTIMENT)


def test_a_label_of_the_other_data_that_is_no_class() -> None:
    assert match(["positive"], SENTIMENT).index("joy") is None
    assert match(["0", "1", "2"], SENTIMENT).index("3") is None
    assert match(["0", "1", "2"], SENTIMENT).index("neutral") == 1


def test_order_of_labels() -> None:
    assert in_order(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert in_order(["10", "9", "007"]) == ["007", "10", "9"]
    assert in_order(["True", "False"]) == ["False", "True"]


def test_heads_of_checkpoints() -> None:
    named = {"id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}
    assert head_of(BertConfig(architectures=["BertForSequenceClassification"], **named)) == Head(2, ("b", "a"))
    assert head_of(LlamaConfig(architectures=["LlamaForSequenceClassification"], num_labels=5)) == Head(5, None)
    assert head_of(BertConfig(architectures=["BertForTokenClassification"], **named)) is None
    assert head_of(BertConfig(**named)) is None
    assert head_of(None) is None


def test_numbers_with_names_in_the_data_set_become_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    assert class_names(rows) == {"label": ["pos", "neg"]}
    seen: list[Row] = []

    def encode(row: Row) -> list[Example]:
        seen.append(row)
        return []

    for row in rows:
        as_described(encode, rows)(row)
    assert [row["label"] for row in seen] == ["neg", "pos", -1]
    assert as_described(encode, rows.select_columns(["text"])) is encode


def labels(values: list[object]) -> SequenceClassification:
    rows = [{"text": f"text {number}", "label": value} for number, value in enumerate(values)]
    task = SequenceClassificationTask(SequenceClassification(), TOKENIZER)
    task.fit(rows)
    return task


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([True, False, True], ["False", "True"]),
        ([10, 9, 9], ["9", "10"]),
        (["012", "007"], ["007", "012"]),
        (["b", "a"], ["a", "b"]),
        (["1.2.3", "v1.0", "1."], ["1.", "1.2.3", "v1.0"]),
    ],
)
def test_labels_of_every_kind(values: list[object], classes: list[str]) -> None:
    assert labels(values).classes == classes


@pytest.mark.parametrize(
    ("value", "what", "do"),
    [
        (
            1.0,
            "gives 1.0, a number with a fraction",
            "write the class as an integer (pandas makes fractions of a column of integers where some are missing), or as "
            "a name that is no number",
        ),
        *(
            (
                text,
                f"gives {text!r}, a number with a fraction",
                "write the class as an integer (pandas makes fractions of a column of integers where some are missing), or "
                "as a name that is no number",
            )
            for text in ("0.0", "1.25", "-.5", "2.5E-3", " 1.0 ")
        ),
        (float("nan"), "gives nan, a number with a fraction", "remove the row: it has no label"),
        (
            [1, 0],
            "gives [1, 0], several classes for one text",
            "write the class as an integer or a name: where texts may have several, write a list in every row, from the first on",
        ),
        (None, "is null", "remove the row, or write its class"),
        (" ", "is empty", "remove the row, or write its class"),
    ],
)
def test_labels_that_are_no_class(value: object, what: str, do: str) -> None:
    with pytest.raises(DataError) as refused:
        labels(["a", "b", value])
    assert refused.value.what == f"row 3 of data.train: task.label_field='label' {what}"
    assert refused.value.do == do


def test_rows_without_a_label_are_counted() -> None:
    with pytest.raises(DataError) as refused:
        labels(["a", "b", None, "a", "", " ", "b"])
    assert refused.value.what == "row 3 of data.train: task.label_field='label' is null (there, and in 3 of 7 rows)"


def test_names_of_the_data_set_reach_the_config() -> None:
    """Also of a class that has no row yet; in the order of the feature."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["up", "down", "across"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    task = SequenceClassificationTask(SequenceClassification(), TOKENIZER)
    task.fit(rows)
    assert task.config_overrides()["id2label"] == {0: "up", 1: "down", 2: "across"}
    assert task.kind.majority == 1
    assert [as_described(task.encode, rows)(row)[0]["labels"].tolist() for row in rows] == [[1], [0], [1]]
    task.fit(rows.to_iterable_dataset())
    assert task.classes == ["up", "down", "across"]


def test_names_that_white_space_or_case_keep_apart_are_said() -> None:
    assert alike(["Dog", "cat", "cat ", "CAT", "dog-house"]) == [["cat", "cat ", "CAT"]]
    assert labels(["Dog", "cat", "cat "]).remarks([]) == [
        "classes: 0 = Dog, 1 = cat, 2 = cat ",
        "note: 'cat' and 'cat ' are classes of their own, apart by white space or case alone",
    ]


def test_names_that_usually_mean_no_label_are_classes_and_said() -> None:
    assert labels(["NA", "neg", "NA", "none", "Nora"]).remarks([]) == [
        "classes: 0 = NA, 1 = Nora, 2 = neg, 3 = none",
        "note: 'NA' is a class of its own, in 2 of 5 rows; if it stands for 'no label', remove those rows",
        "note: 'none' is a class of its own, in 1 of 5 rows; if it stands for 'no label', remove those rows",
    ]


def test_a_data_set_that_names_its_classes_may_call_them_anything() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["none", "0.5", "1.0"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 2]}, features=features)
    task = SequenceClassificationTask(SequenceClassification(), TOKENIZER)
    task.fit(rows)
    assert task.remarks([]) == ["classes: 0 = none, 1 = 0.5, 2 = 1.0"]
    assert [as_described(task.encode, rows)(row)[0]["labels"].tolist() for row in rows] == [[1], [0], [2]]


UNLABELLED = "which stands for 'no label' (as in the test splits of GLUE)"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (
            [0, 1, -1, -1],
            f"row 3 of data.train: task.label_field='label' is -1 (there, and in 2 of 4 rows), {UNLABELLED}",
        ),
        (
            ["0", "1", "-1"],
            f"row 3 of data.train: task.label_field='label' is -1 (there, and in 1 of 3 rows), {UNLABELLED}",
        ),
        (
            ["a", -1, "b"],
            f"row 2 of data.train: task.label_field='label' is -1 (there, and in 1 of 3 rows), {UNLABELLED}",
        ),
        (
            [-1, -1],
            f"row 1 of data.train: task.label_field='label' is -1, {UNLABELLED}, there and in all 2 rows: the data is not labelled",
        ),
    ],
)
def test_no_label_is_no_class(values: list[object], what: str) -> None:
    with pytest.raises(DataError) as refused:
        labels(values)
    assert refused.value.what == what
    assert ("give it a name" in refused.value.do) == ("in all" not in what)


def test_classes_that_count_by_their_sign() -> None:
    task = labels([1, -1, -1])
    assert task.classes == ["-1", "1"]
    assert [task.encode({"text": "a", "label": value})[0]["labels"].tolist() for value in (-1, 1)] == [[0], [1]]
    task.check([{"text": "a", "label": -1}], plain_names("data.evaluation"))


def test_names_that_look_like_nothing_are_classes() -> None:
    assert labels(["NA", "None", "null", "nan", "NA"]).classes == ["NA", "None", "nan", "null"]


def test_held_out_rows_without_labels_are_said_to_be_that() -> None:
    task, name = labels([0, 1]), plain_names("data.evaluation")
    with pytest.raises(DataError) as refused:
        task.check([{"text": "a", "label": -1}] * 3, name)
    assert refused.value.what == (
        f"row 1 of data.evaluation: task.label_field='label' is -1, {UNLABELLED}, there and in all 3 rows: "
        "the data is not labelled"
    )
    assert "data.evaluation_split" in refused.value.do
    with pytest.raises(DataError, match=r"^row 2 of data.evaluation: .* is -1 \(there, and in 1 of 2 rows\)"):
        task.check([{"text": "a", "label": 1}, {"text": "a", "label": -1}], name)
    with pytest.raises(DataError, match=r"^row 1 of data.evaluation: task.label_field='label' is null"):
        task.check([{"text": "a", "label": None}, {"text": "a", "label": 1}], name)
    for value, said in ((None, "null"), ("", "''")):
        with pytest.raises(DataError) as refused:
            task.check([{"text": "a", "label": value}] * 3, name)
        assert refused.value.what == (
            f"row 1 of data.evaluation: task.label_field='label' is {said} there and in all 3 rows: the data is not labelled"
        )
    with pytest.raises(DataError, match=r"^task.label_field='label' is -1, which stands for 'no label'"):
        task.encode({"text": "a", "label": -1})


@pytest.mark.parametrize("place", [0, 2])
def test_a_row_without_the_label_that_others_have(place: int) -> None:
    rows: list[Row] = [{"text": "a", "label": name} for name in "abab"]
    rows[place] = {"text": "a"}
    task, name = labels(["a", "b"]), plain_names("data.train")
    with pytest.raises(DataError) as refused:
        task.check(rows, name)
    what = "label is not there, while other rows have it; the columns are text"
    assert refused.value.what == f"row {place + 1} of data.train: {what}"
    assert refused.value.do == "write it there, or remove the row"
    with pytest.raises(
        DataError, match=r"^row 1 of data.train: task.label_field='label' is not there; the columns are t"
    ):
        task.check([{"text": "a"}] * 3, name)


def test_numbers_without_a_name_in_a_described_data_set() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    task = SequenceClassificationTask(SequenceClassification(), TOKENIZER)
    with pytest.raises(DataError, match=r"^row 2 of data.train: .* is -1 \(there, and in 1 of 3 rows\)"):
        task.fit(rows)
    numbers = rows.cast_column("label", datasets.ClassLabel(names=["0", "1"])).select([0, 1])
    with pytest.raises(DataError, match=r"^row 2 of data.train: .* is -1 \(there, and in 1 of 2 rows\)"):
        task.fit(numbers)
    task.fit(rows.select([0, 2]))
    with pytest.raises(DataError, match=r"^task.label_field='label' is -1, which stands for 'no label'"):
        as_described(task.encode, rows)(rows[1])


@pytest.mark.parametrize(
    ("row", "what", "do"),
    [
        ({"sentence": "s", "label": "a"}, "task.text_field='text' is not there; the columns are sentence, label", "set task.text_field to the column that holds the text, 'sentence' perhaps"),
        ({"title": "s", "a_text": "s", "label": "a"}, "task.text_field='text' is not there; the columns are title, a_text, label", "set task.text_field to the column that holds the text, 'a_text' perhaps"),
        ({"text": " \n", "label": "a"}, "task.text_field='text' is empty", "remove the row, or write its text"),
        ({"text": None, "label": "a"}, "task.text_field='text' gives None", "write the value as a string, or remove the row"),
        ({"text": 7, "label": "a"}, "task.text_field='text' gives 7", "write the value as a string, or remove the row"),
    ],
)  # fmt: skip
def test_a_row_without_its_text(row: Row, what: str, do: str) -> None:
    with pytest.raises(DataError) as refused:
        labels(["a", "b"]).encode(row)
    assert refused.value.what.startswith(what) and refused.value.do == do


@pytest.mark.parametrize(
    ("row", "what", "do"),
    [
        ({"text": "s", "sentence1": "s", "label": "a"}, "task.second_text_field='sentence2' is not there", ", 'sentence1' perhaps"),
        ({"text": "s", "label": "a"}, "task.second_text_field='sentence2' is not there", "that holds the text"),
        ({"text": "s", "sentence2": "", "label": "a"}, "task.second_text_field='sentence2' is empty", "or write its text"),
    ],
)  # fmt: skip
def test_a_row_without_its_second_text(row: Row, what: str, do: str) -> None:
    """The column of the first text is never what was meant by the second."""
    task = SequenceClassificationTask(SequenceClassification(second_text_field="sentence2"), TOKENIZER)
    with pytest.raises(DataError) as refused:
        task.encode(row)
    assert refused.value.what.startswith(what) and refused.value.do is not None and refused.value.do.endswith(do)
