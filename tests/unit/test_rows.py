"""What is trained and what is held out: two sets of rows, and a line where they are not; the preview shows the first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from toolkit.cli import run
from toolkit.data.store import Store
from toolkit.errors import DataError
from toolkit.recipe import Batch, Data, Model, Recipe, SequenceClassification
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.progress import Display
from toolkit.train.rows import open_rows


class Said(Display):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(is_main=False)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def notes(self) -> list[str]:
        return [line for line in self.lines if not line.startswith(("preparing", "  "))]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def recipe(tiny_tokenizer_dir: Path):
    def build(train: Path, length: int = 64, **data) -> Recipe:
        return Recipe(
            model=Model(architecture="llama", weights="random", tokenizer=str(tiny_tokenizer_dir)),
            data=Data(train=str(train), **{name: str(v) if isinstance(v, Path) else v for name, v in data.items()}),
            batch=Batch(global_size=2, sequence_length=length),
            steps=2,
        )

    return build


def write(path: Path, texts, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
    return path


def texts(rows) -> list[str]:
    return [row["text"] for row in rows]


def prepared(recipe: Recipe) -> tuple[Inputs, list[str]]:
    said = Said()
    inputs = prepare_inputs(recipe, 0, 1, said)
    return inputs, said.notes()


def decoded(inputs: Inputs, store: Store) -> list[str]:
    return [inputs.task.tokenizer.decode(store[index]["input_ids"]) for index in range(len(store))]


@pytest.mark.parametrize(
    ("train", "test"), [("train/part-0.jsonl", "test/part-0.jsonl"), ("a_train.jsonl", "a_test.jsonl")]
)
def test_splits_of_one_directory_are_trained_and_held_out_apart(recipe, tmp_path, train, test):
    write(tmp_path / "d" / train, [f"train {number}" for number in range(6)])
    write(tmp_path / "d" / test, [f"test {number}" for number in range(4)])
    inputs, notes = prepared(recipe(tmp_path / "d", evaluation=tmp_path / "d"))
    assert decoded(inputs, inputs.batches.store) == [f"train {number}<|im_end|>" for number in range(6)]
    assert decoded(inputs, inputs.held_out) == [f"test {number}<|im_end|>" for number in range(4)]
    assert notes == []


def test_one_directory_for_both_whose_names_say_no_split_is_refused(recipe, tmp_path):
    write(tmp_path / "d" / "a.jsonl", "ab")
    with pytest.raises(DataError) as caught:
        open_rows(recipe(tmp_path / "d", evaluation=tmp_path / "d"), print)
    assert f"are the same files: {tmp_path / 'd' / 'a.jsonl'}; nothing in their names tells the split " in (
        str(caught.value)
    )


def test_a_file_of_the_directory_that_is_held_out_is_refused_for_that(recipe, tmp_path, monkeypatch):
    write(tmp_path / "d" / "test.jsonl", "ab")
    write(tmp_path / "d" / "train.jsonl", "cd")
    monkeypatch.chdir(tmp_path)
    for train in (tmp_path / "d" / "test.jsonl", Path("d/test.jsonl")):
        with pytest.raises(DataError) as caught:
            open_rows(recipe(train, evaluation=tmp_path / "d"), print)
        assert f"are the same files: {tmp_path / 'd' / 'test.jsonl'}; data.evaluation is a directory" in str(
            caught.value
        )
    said = Said()
    open_rows(recipe(Path("d/test.jsonl"), evaluation=tmp_path / "d" / "test.jsonl", streaming=True), said.say)
    assert said.lines == [f"note: data.evaluation reads what data.train reads: {tmp_path / 'd' / 'test.jsonl'}"]


@pytest.mark.parametrize("streaming", [False, True])
def test_names_of_classes_in_a_table_are_those_of_the_held_out_rows(recipe, tmp_path, tiny_bert_dir, streaming):
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
    table = datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    plain = recipe(tmp_path / "rows.parquet", evaluation=tmp_path / "rows.parquet", packing=False, streaming=streaming)
    update = {
        "model": Model(path=str(tiny_bert_dir)),
        "task": SequenceClassification(),
    }
    inputs, _ = prepared(plain.model_copy(update=update))
    assert inputs.task.classes == ["neg", "pos"] and len(inputs.held_out) == 3


def test_columns_of_a_table_that_rows_cannot_hold_are_named(recipe, tmp_path):
    extra = pyarrow.array([[("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    parquet.write_table(pyarrow.table({"text": ["a"], "extra": extra}), tmp_path / "rows.parquet")
    said = Said()
    open_rows(recipe(tmp_path / "rows.parquet"), said.say)
    assert said.lines == ["note: data.train is read without columns of a type that rows cannot hold: extra"]


def test_held_out_rows_that_are_trained_as_well_are_counted(recipe, tmp_path):
    train = write(tmp_path / "a.jsonl", ["one", "two", "three", "four"])
    other = write(tmp_path / "b.jsonl", ["two", "five", "three"])
    assert prepared(recipe(train, evaluation=train))[1][0].startswith(
        "note: 4 of 4 held-out examples are trained as well"
    )
    assert prepared(recipe(train, evaluation=other))[1][0].startswith(
        "note: 2 of 3 held-out examples are trained as well"
    )
    again = write(tmp_path / "c.jsonl", ["same"] * 4)
    assert prepared(recipe(again, evaluation_examples=1))[1][0].startswith("note: 1 of 1 held-out examples")
    _, notes = prepared(recipe(train, evaluation=train, streaming=True))
    assert notes == [f"note: data.evaluation reads what data.train reads: {train}"]


def test_files_beside_those_of_a_split_are_named(recipe, tmp_path):
    write(tmp_path / "d" / "train.jsonl", "ab")
    write(tmp_path / "d" / "more.jsonl", "cd")
    said = Said()
    source, _ = open_rows(recipe(tmp_path / "d"), said.say)
    assert texts(source.rows) == ["a", "b"]
    assert (
        said.lines[0].startswith("note: data.train reads train.jsonl; left out, since")
        and "more.jsonl" in said.lines[0]
    )


def test_without_shuffling_the_last_rows_are_held_out_in_order(recipe, tmp_path):
    path = write(tmp_path / "rows.jsonl", "abcdefgh")
    said = Said()
    train, held_out = open_rows(recipe(path, evaluation_examples=3, shuffle=False), said.say)
    assert (texts(train.rows), texts(held_out.rows)) == (list("abcde"), list("fgh"))
    assert said.lines == ["holding out the last 3 of 8 rows, in order (data.shuffle=False)"]
    drawn, rest = open_rows(recipe(path, evaluation_examples=3), said.say)
    assert sorted(texts(drawn.rows) + texts(rest.rows)) == list("abcdefgh") and texts(rest.rows) != list("fgh")
    whole, _ = open_rows(recipe(path), said.say)
    assert len({source.content for source in (train, held_out, drawn, rest, whole)}) == 5


def test_the_subset_is_that_of_both_sources(recipe, tmp_path, monkeypatch):
    asked = []

    def opened(location, **options):
        asked.append((location, options.get("field", "data.train"), options["subset"], options["split"]))
        return opener(str(tmp_path / "rows.jsonl"), **options)

    opener = open_rows.__globals__["open_source"]
    monkeypatch.setitem(open_rows.__globals__, "open_source", opened)
    write(tmp_path / "rows.jsonl", "ab")
    open_rows(recipe(Path("owner/name"), evaluation="owner/name", subset="main"), print)
    assert asked == [("owner/name", "data.train", "main", "train"), ("owner/name", "data.evaluation", "main", "test")]


def test_columns_that_are_not_used_are_named_once(recipe, tmp_path):
    """Also a key that one row alone has; an empty value is none."""
    path = write(tmp_path / "rows.jsonl", ["one"] * 1500, id=3, notes="", split="test")
    with path.open("a") as file:
        file.write(json.dumps({"text": "two", "id": 3, "tools": [{"type": "function"}], "split": "x"}) + "\n")
    said = "note: data.train has columns that are not used: id, split, tools (in 1 of 1,501 rows); every row counts, and all alike, whatever split says"
    assert prepared(recipe(path))[1] == [said] == prepared(recipe(path))[1]  # the second is prepared already
    assert prepared(recipe(path, streaming=True))[1] == [
        "note: data.train has columns that are not used, in the first 1,000 rows: id, split; "
        "every row counts, and all alike, whatever split says"
    ]
    held_out = write(tmp_path / "held.jsonl", ["three"], id=4, source="book")
    assert prepared(recipe(path, evaluation=held_out))[1] == [
        said,
        "note: data.evaluation has columns that are not used: source",
    ]
    assert prepared(recipe(write(tmp_path / "plain.jsonl", "ab")))[1] == []


def test_columns_of_the_form_that_a_row_does_not_have_are_not_used(recipe, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,instruction,system\nq,a,do,\nq,a,do,be\n")
    assert prepared(recipe(path))[1] == [
        "note: data.train has columns that are not used: instruction, system (in 1 of 2 rows)"
    ]


def test_columns_that_a_classifier_does_not_use_are_named(recipe, tmp_path, tiny_bert_dir):
    path = tmp_path / "rows.csv"
    path.write_text("text,label,weight,loss_mask,title\na,x,1,1,t\nb,y,1,1,t\n")
    plain = recipe(path, packing=False)
    update = {
        "model": Model(path=str(tiny_bert_dir)),
        "task": SequenceClassification(),
    }
    assert prepared(plain.model_copy(update=update))[1][-1] == (
        "note: data.train has columns that are not used: loss_mask, title, weight; "
        "every row counts, and all alike, whatever loss_mask and weight say"
    )


def test_the_preview_names_unused_columns_and_how_the_rows_lie_in_the_file(recipe, tmp_path, capfd, alone):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": "1.0", "data": [{"text": "a", "id": n} for n in range(3)]}, indent=1))
    code, out, _ = previewed(recipe(path), capfd)
    assert code == 0 and "note: data.train has columns that are not used, in the first 3 rows: id\n" in out
    assert out.count("note: data.train: the rows of rows.json are the list 'data' in it\n") == 1


def test_held_out_rows_that_are_lost_are_counted_and_refused_before_the_training_rows_are_prepared(recipe, tmp_path):
    train = write(tmp_path / "a.jsonl", ["one", "two"])
    held_out = write(tmp_path / "b.jsonl", ["x " * 100, "", "short"])
    _, notes = prepared(recipe(train, evaluation=held_out, overlong="drop"))
    assert notes == [
        "note: 2 of 3 held-out rows take no part in any held-out figure: 1 kept; "
        "left out: 1 empty, 1 longer than batch.sequence_length"
    ]
    said = Said()
    with pytest.raises(DataError, match=r"row 1 of data.evaluation, .*b.jsonl': an example has"):
        prepare_inputs(recipe(train, evaluation=held_out, overlong="error"), 0, 1, said)
    assert not any("data.train" in line for line in said.lines)


def test_a_template_that_ends_no_answer_is_said(recipe, tmp_path, tiny_tokenizer_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    plain = recipe(path)
    assert prepared(plain)[1] == []
    model = plain.model.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})
    [note] = prepared(plain.model_copy(update={"model": model}))[1]
    assert note.startswith("note: the tokenizer's chat template puts no special token after an answer")


def previewed(recipe: Recipe, capfd, *flags: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run.main(recipe, ["--preview", "1", *flags])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py"])


@pytest.mark.parametrize(
    ("rows", "options", "counted"),
    [
        (["", " "] * 100 + ["hello you", "", "second"], {"length": 12}, "2 kept; left out: 201 empty"),
        (["word " * 100] * 3, {}, "3 kept, 3 of them cut to batch.sequence_length"),
        (["word " * 100] * 3, {"packing": False}, "1 kept, 1 of them cut to batch.sequence_length"),
        (["word " * 100, "short"], {"overlong": "drop"}, "1 kept; left out: 1 longer than batch.sequence_length"),
        (["word " * 100] * 3, {"overlong": "split"}, "12 kept, with the parts of 3 longer than batch.sequence_length"),
        (["one", "two", "three"], {"evaluation_examples": 1, "shuffle": False}, None),
    ],
    ids=["blank", "truncated", "unpacked", "dropped", "split", "held out"],
)
def test_the_preview_shows_what_is_trained(recipe, tmp_path, capfd, alone, rows, options, counted):
    shown = recipe(write(tmp_path / "rows.jsonl", rows), **options)
    code, out, _ = previewed(shown, capfd)
    inputs, _ = prepared(shown)
    store, sequences = inputs.batches.store, inputs.batches.sequences
    texts = decoded(inputs, store)
    assert code == 0 and re.findall(r"sequence \d+", out) == ["sequence 1"]
    body = re.split(r"--- example \d+: .* ---\n", out.replace("[[", "").replace("]]", ""))[1:]
    counts = re.search(r"of the \d+ rows looked at: (.*)\n", out)
    assert (counts and counts[1]) == counted
    shown_texts = [text.removesuffix(counts[0] if counts else "").removesuffix("\n") for text in body]
    assert shown_texts == [texts[index] for index in sequences[0]]


def test_the_preview_of_rows_that_give_nothing_is_a_message(recipe, tmp_path, capfd, alone):
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n\n")
    code, _, err = previewed(recipe(blank), capfd)
    assert code == 2 and "none of the 3 rows of data.train gave an example (left out: 3 empty)" in err
    long = write(tmp_path / "long.jsonl", ["word " * 100] * 3)
    code, _, err = previewed(recipe(long, overlong="error"), capfd)
    assert code == 2 and f"row 1 of data.train, '{long}': an example has" in err


def trained(inputs: Inputs) -> list[str]:
    store = inputs.batches.store
    labels = [store[index]["labels"] for index in range(len(store))]
    return [inputs.task.tokenizer.decode(ids[ids != -100]) for ids in labels]


def test_answers_that_look_typed_are_trained_as_they_are_written(recipe, tmp_path):
    answers = ["2", "None", "NA", "007", "null", "2021-03-01", "2021-03-01T10:00:00Z", "1e5", "true"]
    table = tmp_path / "answers.csv"
    table.write_text("prompt,completion\n" + "".join(f'"q","{answer}"\n' for answer in answers))
    lines = tmp_path / "answers.jsonl"
    lines.write_text("".join(json.dumps({"prompt": "q", "completion": answer}) + "\n" for answer in answers))
    for path in (table, lines):
        inputs, notes = prepared(recipe(path))
        assert trained(inputs) == [answer + "<|im_end|>" for answer in answers] and notes == []
        batches = prepared(recipe(path, streaming=True, packing=False, shuffle=False))[0].batches
        [ids] = [batch.micro_batches[0]["targets"][0] for batch in batches.iterate(0, 1)]
        assert inputs.task.tokenizer.decode(ids[ids != -100]) == "2<|im_end|>"


def test_classes_of_a_table_are_text(recipe, tmp_path, tiny_bert_dir):
    path = tmp_path / "classes.csv"
    path.write_text(
        "text,label\n" + "".join(f"text {n},{name}\n" for n, name in enumerate(["012", "007", "NA", "007"]))
    )
    plain = recipe(path, packing=False)
    update = {
        "model": Model(path=str(tiny_bert_dir)),
        "task": SequenceClassification(),
    }
    task = prepared(plain.model_copy(update=update))[0].task
    assert task.classes == ["007", "012", "NA"]
    path.write_text("text,label\na,x\nb,\n")
    with pytest.raises(DataError, match="='label' is empty"):
        prepared(plain.model_copy(update=update))


def test_an_empty_field_of_a_table_is_no_second_form_of_text(recipe, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,text\nq,a,\n,,plain text\n,,\n")
    inputs, _ = prepared(recipe(path))
    assert trained(inputs)[0] == "a<|im_end|>" and trained(inputs)[1].endswith("text<|im_end|>")
    assert inputs.batches.store.counts.empty == 1


def test_an_answer_of_weight_0_is_not_trained(recipe, tmp_path):
    messages = [
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "London.", "weight": 0},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Paris.", "weight": 1},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": messages[:2]}) + "\n")
    inputs, _ = prepared(recipe(path))
    assert trained(inputs) == ["Paris.<|im_end|>"] and inputs.batches.store.counts.masked == 1
