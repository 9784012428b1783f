# ruff: noqa: F811 (fixtures are arguments)
"""Several sources with weights: how they are named, what an epoch has of each, the same on every number of ranks and after
a resume, apart from what is held out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from tests.unit.test_rows import Said, alone, cache, prepared, previewed, recipe  # noqa: F401
from toolkit.data.order import Order, num_passed
from toolkit.data.reading.weighted import Weighted, only_location, weighted
from toolkit.errors import DataError
from toolkit.train.inputs import prepare_inputs
from toolkit.train.rows import open_rows


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(name: str, count: int) -> list[dict[str, object]]:
    return [{"text": f"{name} {number}"} for number in range(count)]


# How sources are named


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.jsonl", [("a.jsonl", 1.0)]),
        ("a.jsonl:2", [("a.jsonl", 2.0)]),
        ("a.jsonl:2,b.parquet:1", [("a.jsonl", 2.0), ("b.parquet", 1.0)]),
        ("a.jsonl, b.parquet:.5", [("a.jsonl", 1.0), ("b.parquet", 0.5)]),
        ("owner/name:0.25,python-docstrings:3", [("owner/name", 0.25), ("python-docstrings", 3.0)]),
        ("s3://bucket/x", [("s3://bucket/x", 1.0)]),
        ("x,y.jsonl", [("x,y.jsonl", 1.0)]),
        ("x,y.jsonl:2,a.jsonl", [("x,y.jsonl", 2.0), ("a.jsonl", 1.0)]),
        ("a.jsonl,x,y.jsonl", [("a.jsonl", 1.0), ("x,y.jsonl", 1.0)]),
        ("odd:2", [("odd:2", 1.0)]),
        ("odd:2:3,a.jsonl", [("odd:2", 3.0), ("a.jsonl", 1.0)]),
        ("*.jsonl:2", [("*.jsonl", 2.0)]),
        ("[ab].jsonl,b.parquet", [("[ab].jsonl", 1.0), ("b.parquet", 1.0)]),
        ("~/c.jsonl:2,~/missing", [("{home}/c.jsonl", 2.0), ("{home}/missing", 1.0)]),
    ],
)
def test_sources_and_weights(tmp_path, monkeypatch, text, found):
    """Names with ":" and "," that are there are taken for what they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in ("a.jsonl", "b.parquet", "x,y.jsonl", "odd:2", "home/c.jsonl"):
        (tmp_path / name).write_text("x")
    wanted = [Weighted(location.format(home=tmp_path / "home"), weight) for location, weight in found]
    assert weighted(text, "data.train") == wanted


@pytest.mark.parametrize(
    ("text", "said", "do"),
    [
        ("a.jsonl:0,b.jsonl", "data.train: the weight of 'a.jsonl' is '0'", "write it behind the name, for instance a.jsonl:0.5"),
        ("a.jsonl:-1", "data.train: the weight of 'a.jsonl' is '-1'", "write it behind the name"),
        ("a.jsonl:twice", "data.train: the weight of 'a.jsonl' is 'twice'", "write it behind the name"),
        ("owner/name:nan,x", "data.train: the weight of 'owner/name' is 'nan'", "write it behind the name"),
        ("a.jsonl,", "data.train='a.jsonl,' has nothing beside a comma", "remove the comma"),
        ("a.jsonl,,b.jsonl", "data.train='a.jsonl,,b.jsonl' has nothing beside a comma", "remove the comma"),
        ("a.jsonl,a.jsonl:2", "data.train='a.jsonl,a.jsonl:2' names 'a.jsonl' twice", "give it the sum of the weights"),
    ],
)  # fmt: skip
def test_weights_that_are_none_are_refused(tmp_path, monkeypatch, text, said, do):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("x")
    with pytest.raises(DataError) as caught:
        weighted(text, "data.train")
    assert caught.value.what == said and caught.value.do.startswith(do)


def test_where_one_source_is_needed_several_are_refused():
    assert only_location("owner/name", "data.train", "why") == "owner/name"
    for text in ("a,b", "owner/name:2"):
        with pytest.raises(DataError, match=f"^data.train='{text}', several sources or a weight") as caught:
            only_location(text, "data.train", "a recipe is drafted from its rows")
        assert caught.value.expected == "one source: a recipe is drafted from its rows"


# What an epoch has of each

SIZES, WEIGHTS = (10, 7, 4), (2.0, 1.0, 0.5)


def epochs(order: Order, count: int) -> list[list[tuple[int, int]]]:
    """(pass, index) of each epoch."""
    steps = -(-count * order.num_sequences // order.global_size)
    flat = [place for step in range(steps) for place in order.places(step)]
    return [flat[start * order.num_sequences :][: order.num_sequences] for start in range(count)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_of_each_source_what_its_weight_says(shuffle):
    order = Order(SIZES, 3, seed=5, shuffle=shuffle, weights=WEIGHTS)
    assert order.num_sequences == 2 * 10 + 7 + 2
    drawn = set()
    for epoch in epochs(order, 6):
        counts = Counter(index for _, index in epoch)
        assert [counts[index] for index in range(10)] == [2] * 10
        assert [counts[index] for index in range(10, 17)] == [1] * 7
        part = [index for index in range(17, 21) if counts[index]]
        assert len(part) == 2 and all(counts[index] == 1 for index in part)
        drawn.add(tuple(part))
        if not shuffle:
            assert [index for _, index in epoch] == [*range(10), *range(10), *range(10, 17), *part]
    assert len(drawn) > 1  # drawn anew in every epoch
    places = [place for epoch in epochs(order, 6) for place in epoch]
    assert len({*places}) == len(places)  # no pass has a number twice: random transforms differ


def test_the_order_follows_from_seed_and_step_alone():
    order = Order(SIZES, 3, seed=5, shuffle=True, weights=WEIGHTS)
    again = Order(SIZES, 3, seed=5, shuffle=True, weights=WEIGHTS)
    assert [again.positions(step) for step in (40, 3, 17)] == [order.positions(step) for step in (40, 3, 17)]
    other = Order(SIZES, 3, seed=6, shuffle=True, weights=WEIGHTS)
    assert [other.positions(step) for step in range(4)] != [order.positions(step) for step in range(4)]
    wide = Order(SIZES, 12, seed=5, shuffle=True, weights=WEIGHTS)
    assert wide.positions(2) == [position for step in range(8, 12) for position in order.positions(step)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_weights_of_one_change_nothing(shuffle):
    plain = Order(21, 4, seed=3, shuffle=shuffle)
    parts = Order(SIZES, 4, seed=3, shuffle=shuffle, weights=(1.0, 1.0, 1.0))
    assert [parts.places(step) for step in range(20)] == [plain.places(step) for step in range(20)]


def test_shares_are_rounded_once():
    assert [num_passed(10, weight) for weight in (0.04, 0.25, 1.5, 1.1, 2.0, 0.999)] == [0, 2, 15, 11, 20, 10]
    assert Order((10,), 5, 0, True, (0.5,)).steps_for(2) == 2 and Order((10,), 5, 0, True, (0.5,)).epoch(1) == 1.0
    with pytest.raises(ValueError, match="an epoch without a sequence"):
        Order((3,), 1, 0, True, (0.1,))


# Whole runs


@pytest.fixture
def sources(tmp_path: Path) -> str:
    """12 texts twice, and half of 8 Alpaca rows."""
    write(tmp_path / "a.jsonl", texts("plain", 12))
    rows = [{"instruction": f"ask {number}", "output": f"say {number}"} for number in range(8)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "b.parquet"))
    return f"{tmp_path}/a.jsonl:2,{tmp_path}/b.parquet:0.5"


def learned(inputs, rank: int, world_size: int, start: int, stop: int, state=None) -> list[list[list[str]]]:
    """What each step learns on one rank: of every micro-batch its sequences."""
    batches = replace(inputs.batches, rank=rank, world_size=world_size)
    decode = inputs.task.tokenizer.decode
    return [
        [[decode(ids[ids != -100]) for ids in micro["targets"]] for micro in batch.micro_batches]
        for batch in batches.iterate(start, stop, state=state)
    ]


def test_a_run_on_two_formats_learns_both_by_their_weights(recipe, sources):
    inputs, notes = prepared(recipe(Path(sources), packing=False))
    order = inputs.batches.order
    assert notes == [] or all(note.startswith("note: rows have different columns") for note in notes)
    assert order.num_sequences == 2 * 12 + 4
    said = [text for step in learned(inputs, 0, 1, 0, 14) for micro in step for text in micro]
    counts = Counter(said)
    assert sum(count for text, count in counts.items() if not text.startswith("say")) == 24
    assert sorted(count for text, count in counts.items() if text.startswith("say")) == [1] * 4
    assert inputs.batches.store.num_rows == 20 and len(inputs.batches.store) == 20


@pytest.mark.parametrize("packing", [True, False])
def test_every_number_of_ranks_and_every_resume_sees_the_same(recipe, sources, packing):
    inputs, _ = prepared(recipe(Path(sources), packing=packing))
    whole = learned(inputs, 0, 1, 0, 40)
    two = [learned(inputs, rank, 2, 0, 40) for rank in range(2)]
    for step, (one, *parts) in enumerate(zip(whole, *two, strict=True)):
        assert sorted(text for micro in one for text in micro) == sorted(
            text for part in parts for micro in part for text in micro
        ), step
    again, _ = prepared(recipe(Path(sources), packing=packing))
    assert learned(again, 0, 1, 17, 40, state=inputs.batches.state(17)) == whole[17:]


def test_packed_sequences_hold_examples_of_one_source(recipe, sources):
    inputs, _ = prepared(recipe(Path(sources), packing=True))
    for sequence in inputs.batches.sequences:
        assert {index < 12 for index in sequence} in ({True}, {False})
    assert sorted(index for sequence in inputs.batches.sequences for index in sequence) == list(range(20))


def test_what_the_start_says(recipe, sources):
    said = Said()
    prepare_inputs(recipe(Path(sources), packing=False), 0, 1, said)
    lines = "\n".join(said.lines)
    first, second = (part.rpartition(":")[0] for part in sources.split(","))
    assert f"preparing data.train, {first}: 12 rows" in lines and f"preparing data.train, {second}: 8 rows" in lines
    assert "  12 rows read: 12 as plain text (text)" in lines
    assert "  8 rows read: 8 as Alpaca (instruction, output)" in lines
    assert f"  {first}: 24 of an epoch's sequences, 12 x 2\n  {second}: 4 of an epoch's sequences, 8 x 0.5" in lines


def test_the_preview_shows_every_source(recipe, sources, capfd, alone):
    code, out, _ = previewed(recipe(Path(sources), packing=False), capfd)
    first, second = (part.rpartition(":")[0] for part in sources.split(","))
    assert code == 0 and 0 <= out.index(f"{first}, weight 2:") < out.index("lain 0") < out.index(
        f"{second}, weight 0.5:"
    )
    assert "[[say 0<|im_end|>]]" in out


def test_a_weight_is_part_of_what_is_trained(recipe, sources):
    """A resume compares it; a weight of 1 is the same as none."""
    known = prepared(recipe(Path(sources)))[0]
    other = prepared(recipe(Path(sources.replace(":2", ":3"))))[0]
    assert known.batches.contents() != other.batches.contents() and known.data_content != other.data_content
    first = sources.partition(":2")[0]
    plain, one, two = (prepared(recipe(Path(first + weight)))[0] for weight in ("", ":1", ":2"))
    assert plain.batches.contents() == one.batches.contents() and plain.data_content == one.data_content
    assert plain.batches.contents().digest != two.batches.contents().digest


@pytest.mark.parametrize("shuffle", [True, False])
def test_held_out_rows_are_of_every_source_and_of_no_training_row(recipe, sources, shuffle):
    said = Said()
    train, held_out = open_rows(recipe(Path(sources), evaluation_examples=5, shuffle=shuffle), said.say)
    assert [len(part.source.rows) for part in train.parts] == [9, 6] and train.weights == (2.0, 0.5)
    assert [len(part.source.rows) for part in held_out.parts] == [3, 2] and held_out.weights == (1.0, 1.0)
    rows = [json.dumps(row) for mixture in (train, held_out) for row in mixture.rows]
    assert len({*rows}) == len(rows) == 20
    inputs, _ = prepared(recipe(Path(sources), evaluation_examples=5, shuffle=shuffle))
    assert len(inputs.held_out) == 5
    assert sorted(index for sequence in inputs.held_out_sequences for index in sequence) == list(range(5))
    assert {*inputs.held_out.digests}.isdisjoint(inputs.batches.store.digests)


def test_held_out_files_may_be_several_without_weights(recipe, tmp_path, sources):
    held_out = f"{write(tmp_path / 'c.jsonl', texts('c', 2))},{write(tmp_path / 'd.jsonl', texts('d', 3))}"
    inputs, _ = prepared(recipe(Path(sources), evaluation=held_out))
    assert len(inputs.held_out) == 5
    with pytest.raises(DataError, match="has weights"):
        open_rows(recipe(Path(sources), evaluation=held_out + ":2"), print)


def test_a_row_is_named_in_its_own_source(recipe, tmp_path):
    good, bad = write(tmp_path / "a.jsonl", texts("a", 3)), write(tmp_path / "b.jsonl", [*texts("b", 2), {"text": 5}])
    with pytest.raises(DataError) as caught:
        prepare_inputs(recipe(Path(f"{good}:2,{bad}")), 0, 1, Said())
    assert caught.value.what == f"row 3 of data.train, '{bad}': text is int '5'"
    train, _ = open_rows(recipe(Path(f"{good}:2,{bad}")), print)
    name = train.row_name("data.train")
    assert [name(number) for number in (1, 3, 4, 6)] == [
        f"row {number} of data.train, '{path}'" for number, path in ((1, good), (3, good), (1, bad), (3, bad))
    ]


def test_what_cannot_be_mixed_is_refused(recipe, tmp_path, sources):
    first = sources.partition(":2")[0]
    for source in (sources, first + ":2"):
        with pytest.raises(DataError, match=r"with data\.streaming=True") as caught:
            open_rows(recipe(Path(source), streaming=True), print)
        assert caught.value.do == "set data.streaming=False, or name one source"
    with pytest.raises(DataError, match="both read") as caught:
        open_rows(recipe(Path(f"{tmp_path}/*.jsonl:1,{first}:2")), print)
    with pytest.raises(DataError, match=r"the weight 0.01 of '.*a.jsonl' takes none of its 12 sequences"):
        prepare_inputs(recipe(Path(sources.replace(":2", ":0.01")), packing=False), 0, 1, Said())
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        open_rows(recipe(Path(f"{first},{tmp_path}/missing.jsonl")), print)
