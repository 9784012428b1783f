"""Words with classes: which token learns what, windows, how classes are measured, and rows that cannot be used."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import BertConfig

from tests.tiny import byte_tokenizer, wordpiece_tokenizer
from toolkit.data.packing import Counts
from toolkit.data.reading.described import as_described
from toolkit.errors import DataError
from toolkit.recipe import TokenClassification
from toolkit.tasks.labels.tagged_words import are_entities, word_numbers
from toolkit.tasks.labels.token_classification import TokenClassificationTask

TOKENIZER = wordpiece_tokenizer()
ROWS: list[dict[str, Any]] = [
    {"words": ["Deserialise", "the", "Configuration", "Parser", "now"], "labels": ["O", "O", "B-X", "I-X", "O"]},
    {"words": ["Return", "it"], "labels": ["O", "O"]},
]


def fitted(rows: Any = ROWS, tokenizer: Any = TOKENIZER, **fields: Any) -> TokenClassificationTask:
    task = TokenClassificationTask(TokenClassification(**fields), tokenizer)
    task.fit(rows)
    return task


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_tokenizer()], ids=["wordpiece", "bytes"])
def test_the_first_token_of_each_word_learns_its_class(tokenizer: Any) -> None:
    task = fitted(tokenizer=tokenizer)
    assert task.classes == ["B-X", "I-X", "O"]
    (example,) = task.encode(ROWS[0])
    pieces = [tokenizer.decode([token]).strip().removeprefix("##") for token in example["input_ids"]]
    words: dict[int, str] = {}
    for piece, number in zip(pieces, example["words"].tolist(), strict=True):
        words[number] = words.get(number, "") + piece
    lower = [word.lower() for word in ROWS[0]["words"]]
    assert [words[number].lower() for number in range(5)] == lower
    learned = [(int(number), task.classes[label]) for number, label in zip(example["words"], example["labels"], strict=True) if label != -100]  # fmt: skip
    assert learned == list(enumerate(ROWS[0]["labels"])) and task.targets(example) == 5 < len(pieces)


def test_all_tokens_of_a_word_may_learn_its_class() -> None:
    task = fitted(label_all_tokens=True)
    (example,) = task.encode(ROWS[0])
    by_word: dict[int, list[str]] = {}
    for number, label in zip(example["words"].tolist(), example["labels"].tolist(), strict=True):
        if number >= 0:
            by_word.setdefault(number, []).append(task.classes[label])
    assert len(by_word[0]) > 1 and set(by_word[0]) == {"O"}
    assert len(by_word[2]) > 1 and by_word[2] == ["B-X", *["I-X"] * (len(by_word[2]) - 1)]
    plain = fitted([{"words": ["Configuration", "it"], "labels": [3, 4]}], label_all_tokens=True, scheme="tags")
    (example,) = plain.encode({"words": ["Configuration"], "labels": [3]})
    assert {*example["labels"].tolist()} == {-100, 0} and (example["labels"] == 0).sum() == len(by_word[2])


def test_names_of_the_data_set_reach_the_config() -> None:
    names = datasets.ClassLabel(names=["O", "B-P", "I-P", "B-Q", "I-Q"])
    features = datasets.Features({"words": datasets.List(datasets.Value("string")), "labels": datasets.List(names)})
    rows = datasets.Dataset.from_dict({"words": [["a", "b"], ["c"]], "labels": [[1, 0], [2]]}, features=features)
    task = fitted(rows)
    assert task.config_overrides()["id2label"] == {0: "O", 1: "B-P", 2: "I-P", 3: "B-Q", 4: "I-Q"}
    found = [as_described(task.encode, rows)(row)[0]["labels"] for row in rows]
    assert [labels[labels != -100].tolist() for labels in found] == [[1, 0], [2]]
    assert task.remarks(rows)[-1] == "the classes are entities, measured as wholes"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["O", "B-a", "I-a", "E-a", "S-a"], True),
        (["B-x", "I-x"], True),
        (["O", "I-x"], False),
        (["NOUN", "VERB", "O"], False),
        (["O", "B-x", "other"], False),
    ],
)
def test_what_entities_look_like(names: list[str], found: bool) -> None:
    assert are_entities(names) == found


def test_plain_tags_are_said_to_be_that_and_measured_so() -> None:
    task = fitted([{"words": ["a", "b"], "labels": ["NOUN", "VERB"]}])
    assert task.remarks([]) == ["classes: 0 = NOUN, 1 = VERB", "the classes are tags, one for each word"]
    assert "f1_macro" in task.options.metrics and "f1" not in task.options.metrics
    with pytest.raises(DataError, match=r"task\.scheme='entities' with the classes 0 = NOUN, 1 = VERB"):
        fitted([{"words": ["a", "b"], "labels": ["NOUN", "VERB"]}], scheme="entities")


def test_the_order_of_a_trained_head_is_kept() -> None:
    order = {0: "I-X", 1: "O", 2: "B-X"}
    config = BertConfig(
        architectures=["BertForTokenClassification"], id2label=order, label2id={v: k for k, v in order.items()}
    )
    task = TokenClassificationTask(TokenClassification(), TOKENIZER)
    task.fit(ROWS, config)
    assert task.classes == ["I-X", "O", "B-X"] and not task.new_head


def test_a_long_text_is_cut_between_words_and_not_inside_an_entity() -> None:
    words = ["a", "Big", "File", "the", "Long", "List", "Of", "it"]
    labels = ["O", "B-X", "I-X", "O", "B-X", "I-X", "I-X", "O"]
    task = fitted([{"words": words, "labels": labels}])
    (example,) = task.encode({"words": words, "labels": labels})
    counts = Counts()
    parts = task.fitted(example, 8, "split", counts)
    assert counts.split == 1 and all(len(part["input_ids"]) <= 8 for part in parts)
    frame = {(part["input_ids"][0], part["input_ids"][-1]) for part in parts}
    assert frame == {(TOKENIZER.cls_token_id, TOKENIZER.sep_token_id)}
    assert np.concatenate([part["input_ids"][1:-1] for part in parts]).tolist() == example["input_ids"][1:-1].tolist()
    begins = [task.classes[part["labels"][1]] for part in parts]
    assert len(parts) > 1 and "I-X" not in begins, "no entity goes on in the next part"
    (cut,) = task.fitted(example, 8, "truncate", counts)
    assert cut["input_ids"][-1] == TOKENIZER.sep_token_id and len(cut["labels"]) == 8
    with pytest.raises(DataError, match=r"than the 1 that batch\.sequence_length leaves"):
        task.fitted(task.encode({"words": ["Deserialise", "it"], "labels": ["O", "O"]})[0], 3, "split", counts)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"words": ["a", "b"], "labels": ["O"]}, "task.words_field='words' has 2 words, task.labels_field='labels' 1 labels"),
        ({"words": "a b", "labels": ["O"]}, "task.words_field='words' gives 'a b'"),
        ({"words": ["a", ""], "labels": ["O", "O"]}, "word 2 of task.words_field='words' is ''"),
        ({"words": ["a", None], "labels": ["O", "O"]}, "word 2 of task.words_field='words' is None"),
        ({"words": [], "labels": []}, "task.words_field='words' is empty"),
        ({"words": ["a"], "labels": [-100]}, "label 1 of task.labels_field='labels' is -100, which stands for 'no label'"),
        ({"words": ["a"], "labels": [0.5]}, "label 1 of task.labels_field='labels' is 0.5"),
        ({"words": ["a"], "labels": ["B-Y"]}, "labels has 'B-Y', which does not occur in the training rows (did you mean 'B-X'?)"),
        ({"tokens": ["a"], "labels": ["O"]}, "task.words_field='words' is not there; the columns are tokens, labels"),
        ({"words": ["\u200b", "a"], "labels": ["O", "O"]}, "the tokenizer makes no token of word 1, '\\u200b'"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as refused:
        fitted().encode(row)
    assert refused.value.what.startswith(what)


def test_the_row_of_a_bad_label_is_named() -> None:
    with pytest.raises(DataError, match=r"row 2 of data\.train: task\.labels_field='labels' gives 'O'"):
        fitted([ROWS[0], {"words": ["a"], "labels": "O"}])
    with pytest.raises(DataError, match=r"task\.labels_field='labels' has 1 class"):
        fitted([{"words": ["a"], "labels": ["O"]}])


def test_tokens_belong_to_the_word_that_they_begin_in() -> None:
    assert word_numbers(["ab", "c"], [(0, 0), (0, 1), (1, 2), (2, 3), (2, 4), (0, 0)]) == [-1, 0, 0, -1, 1, -1]


def test_records_are_of_words() -> None:
    task = fitted()
    examples = [task.encode(row)[0] for row in ROWS]
    batch = task.collate([[example] for example in examples])
    assert task.count(batch) == 7 and task.count(task.collate([[task.ignored(examples[0])]])) == 0
    logits = torch.nn.functional.one_hot(batch["targets"].clamp(min=0), 3).float()

    class Told:
        config = type("Config", (), {"_attn_implementation": "sdpa"})

        def forward(self) -> None: ...

        def __call__(self, **inputs: Any) -> Any:
            return type("Output", (), {"logits": logits})

    told: Any = Told()
    told.base_model = told
    records = task.predict(told, batch, examples, None)  # type: ignore[arg-type]
    assert records == [{"prediction": row["labels"], "reference": row["labels"]} for row in ROWS]
    assert task.score(records) == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0}
