"""What `toolkit new` decides by looking: the columns, the sequence length, the batch, the length of the run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolkit.draft import sizes
from toolkit.draft.roles import Roles, find_roles
from toolkit.errors import DataError
from toolkit.recipe import CausalLM, Data, SequenceClassification

SENTENCE = "Some words to read, number {}."


def rows(count: int = 40, **columns: Any) -> list[dict[str, Any]]:
    """`count` rows; a column is a function of the row's number, or a text with room for it."""
    return [
        {name: make(number) if callable(make) else make.format(number) for name, make in columns.items()}
        for number in range(count)
    ]


def roles(found: list[dict[str, Any]], task: str | None = None, **fields: str) -> Roles:
    names = {name: value for kind in (CausalLM(), SequenceClassification()) for name, value in kind if "_field" in name}
    return find_roles(found, Data(train="x.jsonl"), names | fields, set(fields), task)


def chat(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Number {number}?"}, {"role": "assistant", "content": "Yes."}]


def kind(number: int) -> str:
    return "class" if number % 3 else "function"


@pytest.mark.parametrize(
    ("columns", "task", "kind_", "fields"),
    [
        ({"messages": chat}, None, "messages", {}),
        ({"dialog": chat, "id": str}, None, "messages", {"messages_field": "dialog"}),
        ({"whatever": chat}, "causal_lm", "messages", {"messages_field": "whatever"}),
        ({"prompt": SENTENCE, "completion": SENTENCE}, None, "prompt_completion", {}),
        (
            {"id": str, "Frage Nr": str, "Query": SENTENCE, "Reply": SENTENCE},
            None,
            "prompt_completion",
            {"prompt_field": "Query", "completion_field": "Reply"},
        ),
        (
            {"src": SENTENCE, "tgt": SENTENCE},
            None,
            "prompt_completion",
            {"prompt_field": "src", "completion_field": "tgt"},
        ),
        ({"text": SENTENCE}, None, "text", {}),
        ({"body": SENTENCE, "url": "http://x/{}"}, None, "text", {"text_field": "body"}),
        ({"beschreibung": SENTENCE, "id": str, "n": int}, None, "text", {"text_field": "beschreibung"}),
        ({"text": SENTENCE, "label": kind}, None, "classification", {"text_field": "text", "label_field": "label"}),
        ({"text": SENTENCE, "label": kind}, "causal_lm", "text", {}),
        ({"text": SENTENCE, "label": str}, None, "text", {}),
        (
            {"review": SENTENCE, "stars": lambda n: n % 5},
            None,
            "classification",
            {"text_field": "review", "label_field": "stars"},
        ),
        (
            {"beschreibung": SENTENCE, "gruppe": kind},
            "sequence_classification",
            "classification",
            {"text_field": "beschreibung", "label_field": "gruppe"},
        ),
    ],
)
def test_columns_are_told_by_names_and_values(
    columns: dict[str, Any], task: str | None, kind_: str, fields: dict[str, str]
) -> None:
    found = roles(rows(**columns), task)
    assert (found.kind, found.fields) == (kind_, fields)
    assert found.why.keys() == fields.keys()


def test_every_column_has_a_reason_of_its_own() -> None:
    table = roles(rows(text=SENTENCE, label=kind))
    assert table.why == {"text_field": "by its name", "label_field": "2 distinct values in 40 rows"}
    table = roles(rows(beschreibung=SENTENCE, label=kind))
    assert table.why["text_field"] == "the only column that holds text"
    table = roles(rows(text=SENTENCE, label=kind), text_field="nothing", label_field="label")
    assert table.fields == {"text_field": "nothing", "label_field": "label"}  # training says that it is not there


def test_what_the_user_says_wins() -> None:
    table = rows(frage=SENTENCE, antwort=SENTENCE, gruppe=kind)
    pair = roles(table, prompt_field="frage", completion_field="antwort")
    assert pair == Roles("prompt_completion")
    classes = roles(table, text_field="antwort", label_field="gruppe")
    assert (classes.kind, classes.fields) == ("classification", {"text_field": "antwort", "label_field": "gruppe"})
    assert roles(table, text_field="antwort") == Roles("text")


@pytest.mark.parametrize(
    "label",
    [
        lambda n: [0.0, 1.0][n % 2],
        lambda n: None if n % 10 == 3 else [0.0, 1.0][n % 2],
        lambda n: float("nan") if n % 10 == 3 else [0.0, 1.0][n % 2],
        lambda n: None if n % 10 == 3 else n % 3,
        lambda n: ["0.0", "1.0"][n % 2],
        lambda n: -1 if n % 10 == 3 else n % 3,
        lambda n: None if n % 10 == 3 else kind(n),
    ],
    ids=[
        "floats",
        "floats and nulls",
        "floats and nan",
        "integers and nulls",
        "floats as text",
        "-1",
        "names and nulls",
    ],
)
@pytest.mark.parametrize("name", ["label", "Category"])
def test_classes_with_faults_are_classes(label: Any, name: str) -> None:
    """Training then says what is wrong with them; before, they were left out and a language model trained."""
    found = roles(rows(**{"text": SENTENCE, name: label}))
    assert (found.kind, found.fields["label_field"], found.labels) == ("classification", name, ())


@pytest.mark.parametrize(
    ("columns", "task", "labels"),
    [
        ({"label": lambda n: n / 7}, None, ("label",)),
        ({"label": lambda n: min(n, -1)}, None, ("label",)),
        ({"label": lambda n: str(n / 7)}, None, ("label",)),
        ({"label": lambda n: ["0.5", "1.25", "3.0"][n % 3]}, None, ("label",)),
        ({"label": lambda n: [0.5, 1.25, 3.0][n % 3]}, None, ("label",)),
        ({"Stars": lambda n: n / 7, "id": str}, None, ("Stars",)),
        ({"label": lambda n: str(n % 20)}, None, ("label",)),
        ({"label": kind}, "causal_lm", ("label",)),
        ({"label": lambda n: [0.0, 1.0][n % 2]}, "causal_lm", ("label",)),
        ({"label": str}, None, ()),
        ({"language": "en"}, None, ()),
        ({"label": SENTENCE}, None, ()),
        ({"score": lambda n: n / 7}, None, ()),
    ],
)
def test_what_may_be_labels_beside_texts_is_seen(columns: dict[str, Any], task: str | None, labels: Any) -> None:
    found = roles(rows(text=SENTENCE, **columns), task)
    assert (found.kind, found.labels) == ("text", labels)


def test_open_columns_are_listed_with_a_value_and_the_flags() -> None:
    with pytest.raises(DataError) as failure:
        roles(rows(frage=SENTENCE, antwort=SENTENCE, nummer=str))
    assert "    frage    'Some words to read, number 0.'\n" in failure.value.what
    assert "    nummer   '0'" in failure.value.what
    assert "--task.prompt_field frage --task.completion_field antwort" in failure.value.do
    with pytest.raises(DataError) as failure:
        roles(rows(**{f"c{n}": str for n in range(3000)}))
    assert failure.value.what.endswith("    c11  '0'\n    and 2,988 more columns")
    with pytest.raises(DataError, match=r"a column of texts and a column of classes"):
        roles(rows(messages=chat), "sequence_classification")


def test_several_forms_are_refused_as_in_training() -> None:
    with pytest.raises(DataError, match=r"row 1 of data.train: the columns .* hold several forms"):
        roles(rows(messages=chat, text=SENTENCE))


LENGTHS = [*range(20, 120)] * 10


@pytest.mark.parametrize(
    ("lengths", "limit", "packing", "splits", "tokens", "too_long"),
    [
        ([100] * 100, None, False, False, 128, 0),
        ([100] * 99 + [3000], None, False, False, 128, 1),  # one in a hundred may be cut
        ([100] * 98 + [3000] * 2, None, False, False, 3072, 0),  # two may not
        ([100] * 98 + [3000] * 2, 512, False, False, 512, 2),
        ([100] * 98 + [30_000] * 2, None, False, False, sizes.LONGEST, 2),
        ([5] * 10, None, True, False, 64, 0),
        ([100] * 50, None, True, False, 512, 0),  # 128 and 256 would be 78% full
        ([5000] * 10, None, True, True, sizes.LONGEST_PIECE, 10),
        (LENGTHS, 100, True, False, 100, 190),  # the model's own number, no multiple
    ],
)
def test_sequence_length(
    lengths: list[int], limit: int | None, packing: bool, splits: bool, tokens: int, too_long: int
) -> None:
    found = sizes.choose_length(lengths, limit, packing=packing, splits=splits)
    assert (found.tokens, found.too_long) == (tokens, too_long)
    assert (found.full is not None) == packing


@pytest.mark.parametrize(
    ("sequences", "replicas", "length", "largest_micro", "stages", "batch"),
    [
        (2, 2, 512, 2, 1, (2, 1)),
        (50, 2, 128, 16, 1, (4, 2)),
        (10**6, 2, 512, 2, 1, (32, 2)),
        (10**6, 8, 4096, 4, 1, (32, 1)),  # micro-batches of at most 4,096 tokens
        (10**6, 64, 128, 4, 1, (64, 1)),
        (10**6, 3, 128, 4, 1, (24, 4)),
        (37, 1, 512, 2, 4, (4, 1)),  # a micro-batch for each stage
    ],
)
def test_batch(
    sequences: int, replicas: int, length: int, largest_micro: int, stages: int, batch: tuple[int, int]
) -> None:
    found = sizes.choose_batch(sequences, replicas, length, largest_micro=largest_micro, stages=stages)
    assert (found.global_size, found.micro_size) == batch
    assert found.global_size % (found.micro_size * replicas) == 0
    assert found.global_size <= max(sequences, replicas)


def test_a_run_of_any_length_has_room_for_what_is_in_it() -> None:
    """Warm-up, checkpoints and the rest fit into runs from one step on; they follow the length."""
    for steps in range(1, 3000):
        warmup, every = sizes.choose_warmup(steps, 100), sizes.choose_interval(steps, 5)
        assert warmup < steps and 0 <= every <= steps
        assert every == 0 or steps // every >= 5
    assert (sizes.choose_warmup(9, 100), sizes.choose_warmup(40, 100), sizes.choose_warmup(10**6, 100)) == (0, 2, 100)
    assert [sizes.choose_interval(steps, 5) for steps in (9, 10, 37, 300, 10**6)] == [0, 2, 5, 50, 500]
    assert [sizes.choose_held_out(count) for count in (1, 99, 100, 5119, 10**6)] == [0, 0, 5, 255, 256]
    assert [sizes.choose_epochs(steps, usual=3) for steps in (1, 4, 10, 100, 10**6)] == [10, 8, 3, 3, 1]


@pytest.mark.parametrize(("parameters", "rate"), [(1.35e8, 1e-4), (1.2e9, 5e-5), (8e9, 2e-5)])
def test_larger_models_take_smaller_steps(parameters: float, rate: float) -> None:
    assert sizes.learning_rate_for(int(parameters)) == rate
    assert sizes.learning_rate_for(int(parameters), adapters=True) == pytest.approx(10 * rate)


def test_conversations_of_any_kind_are_seen() -> None:
    """ShareGPT's messages under another name, and JSON text in CSV."""
    talk = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]
    assert roles(rows(dialog=lambda _: talk, source=str)).fields == {"messages_field": "dialog"}
    assert roles(rows(history=lambda number: json.dumps(chat(number)))).fields == {"messages_field": "history"}
    assert roles(rows(conversations=lambda _: talk)).form is not None
