# ruff: noqa: F811 (fixtures are arguments)
"""The field's own shapes of rows: recognised by their columns, learned as what they say, and refused with the true cause."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.unit.test_data_tokens import make_tokenizer, trained_runs
from tests.unit.test_rows import Said, alone, cache, prepared, previewed, recipe, trained  # noqa: F401
from toolkit.data.forms.formats import FORMATS, find
from toolkit.errors import DataError
from toolkit.recipe import CausalLM
from toolkit.tasks.language.causal_lm import CausalLMTask
from toolkit.train.inputs import prepare_inputs

TOKENIZER = make_tokenizer()


def made(
    row: dict[str, Any], tokenizer: Any = TOKENIZER, train_on: str = "assistant", **fields: str
) -> tuple[str, list[str]]:
    """The whole text that `row` becomes, and what of it is learned."""
    task = CausalLMTask(CausalLM(train_on=train_on, **fields), tokenizer)
    [example] = task.encode(row)
    return tokenizer.decode(example["input_ids"].tolist()), trained_runs(tokenizer, example)


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def refused(row: dict[str, Any], tokenizer: Any = TOKENIZER, **fields: str) -> DataError:
    with pytest.raises(DataError) as caught:
        made(row, tokenizer, **fields)
    return caught.value


HUMAN = {"from": "human", "value": "Hi"}
GPT = {"from": "gpt", "value": "Hello"}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, [("user", "Add\n\n1 2"), ("assistant", "3")]),
        ({"instruction": "Add", "input": "", "output": "3"}, [("user", "Add"), ("assistant", "3")]),
        ({"instruction": "Add", "input": None, "output": "3", "id": 7}, [("user", "Add"), ("assistant", "3")]),
        ({"instruction": "Add", "output": "3"}, [("user", "Add"), ("assistant", "3")]),
        (
            {"instruction": "B", "input": "", "output": "b", "system": "S", "history": [["A", "a"]]},
            [("system", "S"), ("user", "A"), ("assistant", "a"), ("user", "B"), ("assistant", "b")],
        ),
        (
            {"instruction": "B", "output": "b", "history": '[["A", "a"]]'},
            [("user", "A"), ("assistant", "a"), ("user", "B"), ("assistant", "b")],
        ),
        ({"instruction": "B", "output": "b", "history": []}, [("user", "B"), ("assistant", "b")]),
        ({"instruction": "Who?", "context": "C", "response": "R", "category": "qa"}, [("user", "Who?\n\nC"), ("assistant", "R")]),
        ({"question": "Q", "answer": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, [("system", "S"), ("user", "Q"), ("assistant", "A")]),
        ({"query": "Q", "response": "A", "type": "math"}, [("user", "Q"), ("assistant", "A")]),
        ({"conversations": [HUMAN, GPT]}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"conversation": [HUMAN, GPT]}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"conversations": json.dumps([HUMAN, GPT])}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"conversations": [HUMAN, GPT], "system": "S"}, [("system", "S"), ("user", "Hi"), ("assistant", "Hello")]),
        ({"conversations": [HUMAN, GPT], "system": ""}, [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"conversations": [{"from": "system", "value": "S"}, HUMAN, {"from": "bot", "value": "B"}]},
            [("system", "S"), ("user", "Hi"), ("assistant", "B")],
        ),
        (
            {"conversations": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]},
            [("user", "Hi"), ("assistant", "Hello")],
        ),
        (
            {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
            [("user", "Hi"), ("assistant", "Hello")],
        ),
        (
            {"conversations": [HUMAN, {"from": "gpt", "value": "f()"}, {"from": "observation", "value": "1"}, GPT]},
            [("user", "Hi"), ("assistant", "f()"), ("tool", "1"), ("assistant", "Hello")],
        ),
    ],
)  # fmt: skip
def test_rows_of_a_format_are_learned_as_chats(row, turns):
    text, learned = made(row)
    assert text == chatml(*turns)
    assert learned == [f"{said}<|im_end|>" for role, said in turns if role == "assistant"]


def test_shapes_may_stand_in_the_columns_that_the_recipe_names():
    text = chatml(("user", "Hi"), ("assistant", "Hello"))
    assert made({"talk": [HUMAN, GPT]}, messages_field="talk") == (text, ["Hello<|im_end|>"])
    assert made({"messages": json.dumps([{"role": "user", "content": "Hi"}, GPT])}) == (text, ["Hello<|im_end|>"])


def test_the_columns_of_the_recipe_win():
    alpaca = {"instruction": "Add", "input": "1 2", "output": "3"}
    assert made({**alpaca, "text": "plain"})[0] == "plain<|im_end|>"
    assert made({**alpaca, "prompt": "P", "completion": "C"})[0] == chatml(("user", "P"), ("assistant", "C"))
    assert made({**alpaca, "question": "Q", "answer": "A", "text": "plain"})[0] == "plain<|im_end|>"
    named = {"prompt_field": "instruction", "completion_field": "output"}
    assert made(alpaca, **named)[0] == chatml(("user", "Add"), ("assistant", "3"))
    assert made({**alpaca, "text": None})[0] == made({**alpaca, "text": ""})[0] == made(alpaca)[0]
    # In a table every row has every column.
    assert made({**alpaca, "prompt": "", "completion": ""})[0] == made(alpaca)[0]
    assert made({"instruction": "", "output": "", "text": ""})[0] == ""


def test_alpaca_without_a_chat_template_is_written_in_its_own_words():
    base = make_tokenizer(None)
    row = {"instruction": "Add.", "input": "", "output": "3"}
    intro = "Below is an instruction that describes a task"
    end = "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
    assert made(row, base) == (f"{intro}. {end}### Response:3<|im_end|>", ["3<|im_end|>"])
    more = (
        f"{intro}, paired with an input that provides further context. {end}### Input:\n1 2\n\n### Response:3<|im_end|>"
    )
    assert made({**row, "input": "1 2"}, base) == (more, ["3<|im_end|>"])
    assert refused({**row, "system": "S"}, base).what.startswith(
        "system holds something, but the tokenizer has no chat"
    )
    plain = refused({"question": "Q", "answer": "A"}, base)
    assert plain.what == "question and answer holds conversations, but the tokenizer has no chat template"
    assert "prompt/completion" in plain.do


ASK = {"role": "user", "content": "Hi"}
SAY = {"role": "assistant", "content": "Hello"}


def test_prompts_and_completions_of_messages():
    """As TRL has them: the completion alone is learned, whatever answers the prompt has."""
    row = {"prompt": [ASK, SAY, ASK], "completion": [{**SAY, "content": "Bye"}]}
    text = chatml(("user", "Hi"), ("assistant", "Hello"), ("user", "Hi"), ("assistant", "Bye"))
    assert made(row) == (text, ["Bye<|im_end|>"])
    assert made({name: json.dumps(value) for name, value in row.items()}) == (text, ["Bye<|im_end|>"])
    assert made(row, train_on="all")[1] == [text.removeprefix("<|im_start|>")]
    lists = {"prompt": "[1, 2]", "completion": "[3]"}
    assert made(lists) == (chatml(("user", "[1, 2]"), ("assistant", "[3]")), ["[3]<|im_end|>"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": [ASK], "completion": "x"}, "prompt is a list, but completion is text: 'x'"),
        ({"prompt": "x", "completion": [SAY]}, "completion is a list, but prompt is text: 'x'"),
        ({"prompt": [ASK], "completion": [ASK]}, "prompt and completion has no message of the role 'assistant' after the prompt"),
        ({"prompt": [ASK], "completion": []}, "completion is an empty list"),
        ({"prompt": [ASK], "completion": [{"role": "assistant", "content": 7}]}, "completion[0].content is int '7'"),
        ({"prompt": [{**SAY, "weight": 1}], "completion": [SAY]}, "prompt[0].weight=1 of a message with the role 'assistant'"),
        ({"prompt": "q", "completion": 0}, "completion is int '0'"),
        ({"instruction": "i", "output": 0}, "output is int '0'"),
        ({"instruction": "i", "output": ""}, "output is empty"),
        ({"instruction": "i", "output": None}, "output is null"),
        ({"instruction": None, "output": "o"}, "instruction is null"),
        ({"instruction": "i", "input": ["x"], "output": "o"}, "input is list"),
        ({"instruction": "i", "output": "o", "history": [["q"]]}, "history[0] is"),
        ({"instruction": "i", "output": "o", "history": "q"}, "history is text, but no JSON"),
        ({"question": "q", "answer": 2}, "answer is int '2'"),
        ({"conversations": [HUMAN]}, "conversations has no message of the role 'assistant'"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "conversations[1].value is null"),
        ({"conversations": [HUMAN, {"from": "alien", "value": "x"}]}, "conversations[1].from='alien'"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "f("}]}, "conversations[1].value is text, but no JSON"),
        ({"conversations": "Hi there"}, "conversations is text: 'Hi there'"),
        ({"conversations": "[{'from': 'human'}]"}, "conversations is text, but no JSON"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_refused_by_its_own_column(row, said):
    assert refused(row).what.startswith(said)


@pytest.mark.parametrize(
    ("messages", "said", "do"),
    [
        ([{"role": "human", "content": "a"}], "messages[0].role='human'", "rename the role to user, or the column to conversations"),
        ([{"role": "bot", "content": "a"}], "messages[0].role='bot'", "rename the role to assistant"),
        ([{"role": "alien", "content": "a"}], "messages[0].role='alien'", "rename the role"),
        ([{"role": None, "content": "a"}], "messages[0].role is null", "fill it in"),
        ([{"role": "system", "content": "a"}], "messages has no message of the role 'assistant'", "remove the row"),
        ([ASK, None], "messages[1] is null", "write each message as such an object"),
        ([{"rol": "user", "contnet": "a"}], "messages[0] has no 'role' and no 'content'", "rename 'rol' to 'role' and 'contnet' to 'content', or"),
        ([ASK, {"role": "assistant", "contents": "a"}], "messages[1] has no 'content'", "rename 'contents' to 'content', or"),
        ([ASK, {"role": "assistant", "words": "a"}], "messages[1] has no 'content'", "rename the keys, or"),
        ([ASK, {"role": "assistant", "content": None, "tool_cals": []}], "messages[1].content is null", "rename 'tool_cals' to 'tool_calls' if"),
        ([ASK, {"role": "tool", "content": None, "tool_call_id": "1"}], "messages[1].content is null", "fill it in"),
        (7, "messages is of the type int", "write conversations in that form"),
        ("[1", "messages is text, but no JSON", "repair it"),
        ("[{'role': 'user'}]", "messages is text, but no JSON", "write it with json.dumps: this is how Python prints it"),
    ],
)  # fmt: skip
def test_messages_of_another_shape_say_what_is_known(messages, said, do):
    error = refused({"messages": messages})
    assert error.what.startswith(said) and error.do.startswith(do)


def test_answers_in_a_row_and_first_are_learned():
    text = chatml(("assistant", "Hello"), ("assistant", "Hello"))
    assert made({"messages": [SAY, SAY]}) == (text, ["Hello<|im_end|>"] * 2)


@pytest.mark.parametrize(
    ("row", "what", "do"),
    [
        ({"body": "long text", "title": "t"}, "the columns body, title hold no training text", "set task.text_field='body' if it is plain text to learn, or task.prompt_field and task.completion_field to the columns of question and answer (body, title)"),
        ({"chat": [HUMAN, GPT]}, "the columns chat hold no training text", "chat holds a list of messages: set task.messages_field='chat'"),
        ({"txt": "a"}, "the columns txt hold no training text", "set task.text_field='txt' if 'txt' is meant for it"),
        ({"message": "hello there"}, "the columns message hold no training text", "set task.text_field='message' if it is plain text to learn"),
        ({"prompt": "p", "response": "r"}, "prompt holds something, but completion is not there", "set task.completion_field to the column that holds it, for instance task.completion_field='response'"),
        ({"input": "i", "output": "o"}, "the columns input, output hold no training text", "set task.text_field='input' if it is plain text to learn, or task.prompt_field and task.completion_field to the columns of question and answer (input, output)"),
        ({"id": 3}, "the columns id hold no training text", "give a file with text in it"),
        ({}, "the columns (none) hold no training text", "give a file with text in it"),
        ({"prompt": "p", "id": 3}, "prompt holds something, but completion is not there (the columns are id, prompt)", "set task.completion_field to the column that holds it"),
        ({"prompt": "p", "answer": "a"}, "prompt holds something, but completion is not there", "set task.completion_field to the column that holds it, for instance task.completion_field='answer'"),
        ({"prompt": "p", "completion": None}, "prompt holds something, but completion is null", "fill it in, or remove the row"),
        ({"completion": "c", "prompt": None}, "completion holds something, but prompt is null", "fill it in, or remove the row"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt holds something, but completion is not there", "these are preferences; to learn the chosen answers alone, set task.completion_field='chosen'"),
        ({"prompt": "p", "chosen": [ASK, SAY], "rejected": [ASK, SAY]}, "prompt holds something", "these are preferences; to learn the chosen answers alone, set task.messages_field='chosen'"),
        ({"instruction": "i", "output": "o", "question": "q", "answer": "a"}, "the columns answer, instruction, output, question hold several forms of training text: Alpaca (instruction, output), questions with answers (question, answer)", "say which columns are meant"),
    ],
)  # fmt: skip
def test_a_row_without_training_text_says_what_to_write(row, what, do):
    error = refused(row)
    assert error.what.startswith(what) and error.do.startswith(do)
    assert "content'" not in error.do  # a column that is not there


def test_every_format_is_found_by_its_own_columns():
    for form in FORMATS:
        assert find(dict.fromkeys(form.needs, "x")) is form
        assert find(dict.fromkeys(form.needs)) is None
    assert find({"id": 3, "system": "s", "input": "x", "output": "y"}) is None


ALPACA = [
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"instruction": "Say hi", "input": "", "output": "hi"},
]
LEARNED = ["3<|im_end|>", "hi<|im_end|>"]
LINE = "rows are read as Alpaca (instruction, input, output), since none of the recipe's columns is there"


def written(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ALPACA[0]))
            writer.writeheader()
            writer.writerows(ALPACA)
    elif kind == "parquet":
        datasets.Dataset.from_list(ALPACA).to_parquet(str(path))
    elif kind == "json":
        path.write_text(json.dumps(ALPACA))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ALPACA))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_files_of_every_kind_are_read_alike_prepared_and_as_a_stream(recipe, tmp_path, kind):
    path = written(tmp_path, kind)
    inputs, notes = prepared(recipe(path))
    assert trained(inputs) == LEARNED and notes == [LINE]
    inputs, notes = prepared(recipe(path, streaming=True, packing=False, shuffle=False))
    [batch] = inputs.batches.iterate(0, 1)
    targets = [ids[ids != -100] for micro in batch.micro_batches for ids in micro["targets"]]
    assert [inputs.task.tokenizer.decode(ids) for ids in targets] == LEARNED and notes == [LINE]


def test_the_preview_says_how_rows_are_read_and_shows_it(recipe, tmp_path, capfd, alone):
    code, out, _ = previewed(recipe(written(tmp_path, "jsonl"), packing=False), capfd)
    assert code == 0 and out.count(LINE) == 1
    assert "<|im_start|>user\nAdd\n\n1 2<|im_end|>\n<|im_start|>assistant\n[[3<|im_end|>]]" in out


def test_rows_of_several_forms_are_said_to_be_with_a_row_of_each(recipe, tmp_path):
    """Also where the first rows, which are looked at, are all alike."""
    path = tmp_path / "rows.jsonl"
    pair = {"prompt": "p", "completion": "c"}
    for first, count in ((pair, 2), (pair, 150), (ALPACA[0], 150)):
        second = ALPACA[0] if first == pair else pair
        path.write_text("".join(json.dumps(row) + "\n" for row in [first] * count + [second] * count))
        said = "note: rows have different columns, and each is read by its own: "
        [line] = [line for line in prepared(recipe(path))[1] if line.startswith(said)]
        names = dict(part.split(", as in row ") for part in line.removeprefix(said).split("; "))
        assert [*names] == ["prompt with completion", "Alpaca (instruction, input, output)"][
            :: 1 if first == pair else -1
        ]
        places = [int(place.removesuffix(f" of data.train, '{path}'")) for place in names.values()]
        assert places[0] == 1 and count < places[1] <= 2 * count
        assert not any("none of the recipe's columns" in line for line in prepared(recipe(path))[1])


def test_plain_text_beside_the_columns_of_a_format_is_said(recipe, tmp_path):
    """As the first Alpaca file has it: the column text holds all of it."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ALPACA[0], "text": "Add 1 2: 3"}) + "\n")
    inputs, notes = prepared(recipe(path))
    assert trained(inputs)[0].endswith(": 3<|im_end|>")
    assert notes[0] == (
        "note: text is learned as plain text, all of it; to learn the answers of Alpaca (instruction, output) alone, "
        "name a column that is not there: --task.text_field none_of_them"
    )
    path.write_text(json.dumps({**ALPACA[0], "text": "Add 1 2: 3"}) + "\n")
    assert (
        trained(prepared(recipe(path).model_copy(update={"task": CausalLM(text_field="none_of_them")}))[0])
        == LEARNED[:1]
    )


def complaint(recipe: Any, path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare_inputs(recipe(path, **options), 0, 1, Said())
    return caught.value.what


EMPTY = [
    (lambda text: {"prompt": "q", "completion": text}, "completion is empty"),
    (lambda text: {"instruction": "i", "output": text}, "output is empty"),
    (lambda text: {"prompt": "q", "completion": text or None}, "prompt holds something, but completion is null"),
    (
        lambda text: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]},
        "messages[1].content='': an empty answer would be trained",
    ),
]


@pytest.mark.parametrize(("row", "said"), EMPTY, ids=["completion", "format", "null", "message"])
@pytest.mark.parametrize("streaming", [False, True])
def test_empty_answers_are_counted(recipe, tmp_path, row, said, streaming):
    path = tmp_path / "rows.jsonl"
    answers = ["a"] * 5 + ["", "b"] * 6 + ["c"] * 43
    path.write_text("".join(json.dumps(row(answer)) + "\n" for answer in answers))
    options = {"streaming": True, "packing": False} if streaming else {}
    with pytest.raises(DataError) as caught:
        inputs, _ = prepared(recipe(path, **options))
        next(iter(inputs.batches.iterate(0, 1)))
    what = caught.value.what
    assert what.startswith(f"row 6 of data.train, '{path}': {said}") and what.endswith("(there, and in 6 of 60 rows)")


LACKING = [
    ({"instruction": "i", "input": "x", "output": "o"}, "output"),
    ({"instruction": "i", "input": "x", "output": "o"}, "instruction"),
    ({"prompt": "p", "completion": "c"}, "completion"),
    ({"prompt": "p", "completion": "c"}, "prompt"),
    ({"messages": [ASK, SAY], "id": 7}, "messages"),
    ({"conversations": [HUMAN, GPT], "id": 7}, "conversations"),
    ({"text": "t", "id": 7}, "text"),
]


@pytest.mark.parametrize(("row", "column"), LACKING)
@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_lacks_a_column_of_the_others_says_which(recipe, tmp_path, row, column, place, streaming):
    path = tmp_path / "rows.jsonl"
    rest = {name: value for name, value in row.items() if name != column}
    rows = [rest if number in (place, 8) else row for number in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"streaming": True, "packing": False} if streaming else {}
    with pytest.raises(DataError) as caught:
        inputs, _ = prepared(recipe(path, **options))
        next(iter(inputs.batches.iterate(0, 1)))
    assert caught.value.what == (
        f"row {place + 1} of data.train, '{path}': {column} is not there (there, and in 2 of 10 rows), while other rows "
        f"have it; the columns are {', '.join(rest)}"
    )
    assert caught.value.do == "write it there, or remove the row"


def test_complaints_name_the_row_and_its_file(recipe, tmp_path, capfd, alone):
    path = tmp_path / "rows.jsonl"
    rows = [*ALPACA, {"instruction": "x", "output": 0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = f"row 3 of data.train, '{path}': output is int '0'"
    assert complaint(recipe, path) == said
    code, _, err = previewed(recipe(path), capfd)
    assert code == 2 and err.startswith(f"error: {said}\n")
    stream = prepare_inputs(recipe(path, streaming=True), 0, 1, Said()).batches
    with pytest.raises(DataError) as caught:
        next(iter(stream.iterate(0, 1)))
    assert caught.value.what == said


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_of_several_files_the_row_is_named_in_its_own(recipe, tmp_path, kind):
    parts = [[ALPACA[0]] * 2, [ALPACA[0]] * 3, [ALPACA[0], {**ALPACA[0], "output": " "}]]
    for number, part in enumerate(parts):
        path = tmp_path / "d" / f"part-{number}.{kind}"
        path.parent.mkdir(exist_ok=True)
        written(path.parent, kind).rename(path)
        if kind == "parquet":
            datasets.Dataset.from_list(part).to_parquet(str(path))
        elif kind == "csv":
            lines = [",".join(f'"{value}"' for value in row.values()) for row in part]
            path.write_text("\n".join([",".join(part[0]), *lines]) + "\n")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
    last = tmp_path / "d" / f"part-2.{kind}"
    assert complaint(recipe, tmp_path / "d") == f"row 7 of data.train, row 2 of '{last}': output is empty"


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_keep_their_numbers_when_some_are_held_out(recipe, tmp_path, shuffle):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"row {number}"} for number in range(1, 8)]
    for bad in range(1, 8):
        changed = [{"text": bad} if number == bad else row for number, row in enumerate(rows, start=1)]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        said = complaint(recipe, path, evaluation_examples=2, shuffle=shuffle)
        assert said == f"row {bad} of data.train, '{path}': text is int '{bad}'"
    path.write_text('{"text": "a"}\n{"text": 2}\n')
    assert complaint(recipe, path, evaluation_examples=1, shuffle=shuffle).startswith("row 2 of data.train")
