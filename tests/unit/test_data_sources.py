"""Opening sources: every kind of file, and a message for everything that can be wrong with one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest

from toolkit.data.sources import _open_hub, open_source
from toolkit.errors import DataError

ROWS = [{"text": "one"}, {"text": "two"}, {"text": "three"}]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(str(path), index=False)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def opened(location, tmp_path, split="train", **options):
    return open_source(str(location), split=split, cache_dir=tmp_path / "cache", **options).rows


def refused(location, tmp_path, **options) -> str:
    with pytest.raises(DataError) as caught:
        opened(location, tmp_path, **options)
    return str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
def test_every_kind_of_file(tmp_path, suffix, streaming):
    path = write(tmp_path / f"rows{suffix}")
    rows = opened(path, tmp_path, streaming=streaming, split="whatever")
    assert isinstance(rows, datasets.IterableDataset if streaming else datasets.Dataset)
    assert list(rows) == ROWS
    assert list(opened(path, tmp_path, streaming=streaming, max_examples=2)) == ROWS[:2]


def test_json_lines_under_the_name_json_and_blank_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('\n{"text": "one"}\n\n{"text": "two"}\n')
    assert list(opened(path, tmp_path)) == ROWS[:2]


def test_the_same_rows_have_the_same_fingerprint_and_changed_ones_another(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    first = opened(path, tmp_path)._fingerprint
    assert opened(path, tmp_path)._fingerprint == first
    write(path, ROWS[:2])
    os.utime(path, ns=(1, 1))
    changed = opened(path, tmp_path)
    assert changed._fingerprint != first and len(changed) == 2


def test_a_directory_with_files_named_after_splits(tmp_path):
    write(tmp_path / "set" / "train-00000-of-00002.jsonl", ROWS[:1])
    write(tmp_path / "set" / "train-00001-of-00002.jsonl", ROWS[1:])
    write(tmp_path / "set" / "test.jsonl", ROWS[:2])
    assert list(opened(tmp_path / "set", tmp_path)) == ROWS
    assert list(opened(tmp_path / "set", tmp_path, split="test")) == ROWS[:2]
    said = refused(tmp_path / "set", tmp_path, split="tets", field="data.evaluation")
    assert "data.evaluation_split='tets' is not a split of data.evaluation=" in said
    assert "(did you mean 'test'?)" in said and "one of: test, train" in said


def test_a_directory_of_other_files_and_a_pattern(tmp_path):
    write(tmp_path / "set" / "a.jsonl", ROWS[:1])
    write(tmp_path / "set" / "sub" / "b.jsonl", ROWS[1:])
    assert list(opened(tmp_path / "set", tmp_path)) == ROWS
    assert list(opened(tmp_path / "set" / "*.jsonl", tmp_path)) == ROWS[:1]
    assert list(opened(tmp_path / "set" / "**" / "b*", tmp_path)) == ROWS[1:]
    write(tmp_path / "set" / "c.csv")
    assert "mixes kinds of files: a.jsonl, c.csv, b.jsonl" in refused(tmp_path / "set", tmp_path)
    assert "matches no file" in refused(tmp_path / "set" / "*.parquet", tmp_path)


def test_a_pattern_relative_to_the_current_directory(tmp_path, monkeypatch):
    write(tmp_path / "set" / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert list(opened("set/*.jsonl", tmp_path)) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
def test_what_save_to_disk_writes(tmp_path, streaming):
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=saved, held_out=saved.select([0])).save_to_disk(str(tmp_path / "several"))
    assert list(opened(tmp_path / "one", tmp_path, streaming=streaming)) == ROWS
    assert list(opened(tmp_path / "several", tmp_path, split="held_out", streaming=streaming)) == ROWS[:1]
    said = refused(tmp_path / "several", tmp_path, split="heldout")
    assert "data.split='heldout'" in said and "(did you mean 'held_out'?)" in said
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "looks like a data set written by `save_to_disk`, but" in refused(tmp_path / "one", tmp_path)


def test_missing_files(tmp_path, monkeypatch):
    write(tmp_path / "chats.jsonl")
    said = refused(tmp_path / "chat.jsonl", tmp_path, field="data.evaluation")
    assert said.startswith(
        f"data.evaluation={str(tmp_path / 'chat.jsonl')!r} does not exist (did you mean 'chats.jsonl'?)"
    )
    assert "beside it are: chats.jsonl" in said
    assert "neither does the directory" in refused(tmp_path / "nowhere" / "chat.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "(did you mean 'chats.jsonl'?)" in refused("chat.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": "a"}\n\n["b"]\n', "line 3 is of type list"),
        (b'{"text": "a"}\n{}\n', "line 2 is an empty object"),
        (b'{"text": "a"}\nnull\n', "line 2 is of type NoneType"),
        (b'{"text": "a"}\n{"text": NaN}\n', "line 2 is not JSON: NaN is not a JSON value"),
        (b'{"text": "a"}\n{"text": "\xe9"}\n', "line 2 is not UTF-8 text (byte 0xe9)"),
        (b"", "has no rows"),
        (b" \n\n", "has no rows"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    for streaming in (False, True):
        message = refused(path, tmp_path, streaming=streaming)
        assert message.startswith(f"data.train={str(path)!r}") and said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a"},\n {"text": }]', "line 2 is not JSON: Expecting value at column 11"),
        ('[{"text": "a"}, 3]', "element 2 of the list is of type int"),
        ("[]", "has no rows"),
        ('{\n "text": "a"\n}', "line 1 is not JSON"),
    ],
)
def test_bad_json_lists_are_named(tmp_path, content, said):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert said in refused(path, tmp_path)


def test_a_checked_file_is_not_read_again_until_it_changes(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    opened(path, tmp_path)
    [mark] = (tmp_path / "cache" / "checked").iterdir()
    path.write_text('{"text": \n')
    assert "line 1 is not JSON" in refused(path, tmp_path)
    assert list((tmp_path / "cache" / "checked").iterdir()) == [mark]


def test_files_that_are_not_what_their_name_says(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4,5\n")
    assert "line 3 has 3 fields, the header 2" in refused(tmp_path / "a.csv", tmp_path)
    (tmp_path / "a.parquet").write_text("no parquet")
    assert "cannot be read as parquet: " in refused(tmp_path / "a.parquet", tmp_path)
    (tmp_path / "header.csv").write_text("a,b\n")
    assert "has no rows" in refused(tmp_path / "header.csv", tmp_path)


def test_unsupported_names(tmp_path):
    for name, hint in (("a.jsonl.gz", "decompress it first"), ("a.xlsx", "convert it"), ("a", "convert it")):
        (tmp_path / name).write_text("x")
        said = refused(tmp_path / name, tmp_path)
        assert "which is not read" in said and hint in said and ".jsonl, .json, .csv, .parquet, .txt" in said
    (tmp_path / "empty").mkdir()
    assert "holds no data file" in refused(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_hub_name_without_a_hub(tmp_path, name):
    said = refused(name, tmp_path)
    assert f"data.train={name!r} is no local file or directory, and the hub did not give it: Couldn't reach" in said
    assert "an existing path, a name that `toolkit fetch` knows, or the name of a hub data set" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user, which only root can")
def test_files_of_another_user(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    path.chmod(0o600)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        said = refused(path, tmp_path)
    finally:
        os.seteuid(0)
    assert "Permission denied" in said and "change the permissions" in said


def test_the_loader_is_quiet(tmp_path, capfd):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4,5\n")
    refused(tmp_path / "a.csv", tmp_path)
    opened(write(tmp_path / "rows.jsonl"), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_a_hub_data_set_without_the_split(tmp_path):
    """The hub's own loader on a directory stands in for a data set that was found."""
    write(tmp_path / "set" / "train.jsonl")
    with pytest.raises(DataError) as caught:
        _open_hub(str(tmp_path / "set"), "tset", None, False, "data.train", tmp_path / "cache")
    assert "with split 'tset' and data.subset=None: Unknown split \"tset\". Should be one of ['train']" in str(
        caught.value
    )
