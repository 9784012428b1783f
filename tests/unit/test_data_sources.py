"""Opening sources: every kind of file, and a message for everything that can be wrong with one."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from toolkit.data.reading import content as content_module
from toolkit.data.reading.hub_rows import Hub, open_hub
from toolkit.data.reading.sources import open_source
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


def content(location, tmp_path, split="train", cache="cache", **options) -> str:
    return open_source(str(location), split=split, cache_dir=tmp_path / cache, **options).content


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
@pytest.mark.parametrize("longer", [False, True], ids=["same size", "other size"])
def test_other_content_under_the_same_name_and_time_is_read(tmp_path, suffix, streaming, longer):
    path = write(tmp_path / f"rows{suffix}")
    status = path.stat()
    assert list(opened(path, tmp_path, streaming=streaming)) == ROWS
    before = content(path, tmp_path, streaming=streaming)
    others = [{"text": "six"}, *ROWS[1:], *([{"text": "four"}] if longer else [])]
    write(tmp_path / f"new{suffix}", others).replace(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size == status.st_size) is not longer
    assert list(opened(path, tmp_path, streaming=streaming)) == others
    assert content(path, tmp_path, streaming=streaming) != before


def test_other_content_of_a_saved_data_set_is_noticed(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    before = content(tmp_path / "set", tmp_path)
    state = (tmp_path / "set" / "state.json").read_text()
    datasets.Dataset.from_list(ROWS[::-1]).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set" / "state.json").write_text(state)  # as if it had kept its own fingerprint
    assert content(tmp_path / "set", tmp_path) != before


def test_the_content_is_that_of_the_rows_wherever_they_are(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    before = content(path, tmp_path)
    moved = write(tmp_path / "elsewhere" / "other.jsonl")
    os.utime(moved, ns=(1, 1))
    assert content(moved, tmp_path, cache="other cache") == before == content(path, tmp_path, streaming=True)
    assert content(write(tmp_path / "set" / "train" / "a.jsonl").parent.parent, tmp_path) == before
    others = {
        content(path, tmp_path, max_examples=2),
        content(path, tmp_path, max_examples=1),
        content(write(tmp_path / "rows.txt"), tmp_path),
        content(write(tmp_path / "turned.jsonl", ROWS[::-1]), tmp_path),
    }
    assert len(others | {before}) == 5
    saved = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    for place in ("one", "two"):
        saved.save_to_disk(str(tmp_path / place))
    assert content(tmp_path / "one", tmp_path) == content(tmp_path / "two", tmp_path)
    assert content(tmp_path / "one", tmp_path, split="test") != content(tmp_path / "one", tmp_path)


def test_a_file_is_hashed_again_only_when_it_may_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(content_module, "SETTLED_S", 0.0)
    monkeypatch.setattr(content_module, "SMALL", 0)
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(content_module.hashlib, "file_digest", lambda *given: hashed.append(1) or digest(*given))
    path = write(tmp_path / "rows.jsonl")
    status = path.stat()
    time.sleep(0.05)
    first = content_module.file_digest(path, tmp_path / "cache")
    assert content_module.file_digest(path, tmp_path / "cache") == first and len(hashed) == 1
    path.write_bytes(path.read_bytes().replace(b"one", b"six"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_module.file_digest(path, tmp_path / "cache") != first and len(hashed) == 2


def test_a_small_file_is_not_remembered_and_one_changed_a_moment_ago_is_waited_for(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl")
    content_module.file_digest(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(content_module, "SMALL", 0)
    monkeypatch.setattr(content_module, "SETTLED_S", 0.2)
    write(path, ROWS[:2])
    digest = content_module.file_digest(path, tmp_path / "cache")
    [note] = (tmp_path / "cache" / "content").glob("*[0-9a-f]")
    assert json.loads(note.read_text())["sha256"] == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_dev not in json.loads(note.read_text())["state"]


def test_of_processes_that_start_together_one_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(content_module, "SMALL", 0)
    monkeypatch.setattr(content_module, "SETTLED_S", 0.1)
    hashed = []
    digest = content_module._hashed

    def slowly(path):
        hashed.append(path)
        time.sleep(0.1)
        return digest(path)

    monkeypatch.setattr(content_module, "_hashed", slowly)
    path = write(tmp_path / "rows.jsonl")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: content_module.file_digest(path, tmp_path / "cache"), range(4)))
    assert len({*found}) == 1 and hashed == [path]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".txt"])
def test_a_stream_is_not_read_through_before_it_starts(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(content_module, "SAMPLE_BLOCKS", 3)
    monkeypatch.setattr(content_module, "SAMPLE_BLOCK", 16)
    monkeypatch.setattr(content_module, "_hashed", lambda _: pytest.fail("read through"))
    path = write(tmp_path / f"rows{suffix}", ROWS * 2000)
    assert len(list(opened(path, tmp_path, streaming=True))) == 6000
    before = content(path, tmp_path, streaming=True)
    assert content(shutil.copy(path, tmp_path / f"copy{suffix}"), tmp_path, streaming=True) == before
    others = [ROWS * 1999, [*ROWS[::-1], *ROWS * 1999]] if suffix != ".parquet" else [ROWS * 1999]
    for number, rows in enumerate(others):
        assert content(write(tmp_path / f"{number}{suffix}", rows), tmp_path, streaming=True) != before


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "what?.jsonl", "{x}.jsonl", "a::b.jsonl", "#1 %20.jsonl"])
def test_a_path_is_taken_as_it_is(tmp_path, name, streaming):
    write(tmp_path / "a1.jsonl", [{"text": "another file"}])
    table = write(tmp_path / Path(name).with_suffix(".json"))
    assert list(opened(table, tmp_path, streaming=streaming)) == ROWS
    assert list(opened(write(tmp_path / "d[0-9]*" / name), tmp_path, streaming=streaming)) == ROWS
    assert list(opened(tmp_path / "d[0-9]*", tmp_path, streaming=streaming)) == ROWS


def test_a_pattern_below_a_folder_whose_name_looks_like_one(tmp_path):
    write(tmp_path / "d[1]" / "a.jsonl")
    write(tmp_path / "d1" / "a.jsonl", ROWS[:1])
    assert list(opened(tmp_path / "d[1]" / "*.jsonl", tmp_path)) == ROWS
    assert list(opened(tmp_path / "d?" / "*.jsonl", tmp_path)) == ROWS[:1]


@pytest.mark.parametrize("streaming", [False, True])
def test_csv_fields_are_the_text_that_is_written(tmp_path, streaming):
    path = tmp_path / "rows.csv"
    fields = ["2", "None", "null", "NA", "007", "1e5", "true", "2021-03-01", "", " x ", 'a "b", c', "two\nlines", "-"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *((field, "012") for field in fields)])
    assert list(opened(path, tmp_path, streaming=streaming)) == [{"text": field, "label": "012"} for field in fields]
    plain = tmp_path / "plain.csv"
    plain.write_text("text,label\r\n7,007\r\n\r\nNA,\r\n")
    assert list(opened(plain, tmp_path, streaming=streaming)) == [
        {"text": "7", "label": "007"}, {"text": "NA", "label": ""},
    ]  # fmt: skip
    long = write(tmp_path / "long.csv", [{"text": "x" * 300_000}])
    assert len(opened(long, tmp_path)[0]["text"]) == 300_000


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a,b\n1,2\n3\n", "line 3 has 1 fields, the header 2"),
        ('a,b\n1,"2\n3,4\n', "line 2 is not CSV: a quote that opens there is never closed"),
        ('a,b\n1,"2" x\n', "line 2 is not CSV: ',' expected after"),
        ("a,b,a\n1,2,3\n", "has the column 'a' 2 times"),
        (",,\n1,2,3\n", "has no name of a column in its first line"),
        ("a,b,,\nx,y,z,\n", "line 2 has 'z' in column 3, which has no name"),
        ("a,,b\nx,y,z\n", "line 2 has 'y' in column 2, which has no name"),
    ],
)
def test_bad_csv_is_named(tmp_path, written, said):
    (tmp_path / "rows.csv").write_text(written)
    for streaming in (False, True):
        message = refused(tmp_path / "rows.csv", tmp_path, streaming=streaming)
        assert message.startswith(f"data.train={str(tmp_path / 'rows.csv')!r}") and said in message


def test_a_faulty_row_of_a_stream_is_named_where_it_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n" * 1 + "1,2\n" * 2000 + "3\n")
    rows = iter(opened(tmp_path / "rows.csv", tmp_path, streaming=True))
    with pytest.raises(DataError, match="line 2,003 has 1 fields, the header 2"):
        list(rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "written",
    [
        "prompt,completion,,\na,b,,\nc,d,,\n",
        "prompt,completion,\r\na,b,\r\nc,d, \r\n",
        ",prompt,completion\n0,a,b\n1,c,d\n",
        "prompt,completion\na,b\n   \nc,d\n \t\n",
    ],
    ids=["spreadsheet", "one more", "row numbers", "blanks"],
)
def test_csv_with_columns_and_lines_that_hold_nothing(tmp_path, written, streaming):
    (tmp_path / "rows.csv").write_text(written, newline="")
    found = list(opened(tmp_path / "rows.csv", tmp_path, streaming=streaming))
    assert found == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


JSON_VALUES = [
    "2021-03-01", "2021-03-01T10:00:00Z", "2021-03-01 10:00:00+02:00", "12:30", "7", "1e5", "", None, 7, 7.0, 1e300, 2**70,
    True, [], ["2021-03-01", 2, None, {"a": []}], {"d": "2021-03-01", "n": None}, {"d": 3}, {}, "\u00e9\U0001f40b",
]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_values_are_those_of_the_file(tmp_path, suffix, streaming):
    rows = [{"answer": value, "n": number} for number, value in enumerate(JSON_VALUES)] + [{"other": "2021-03-01"}]
    for name, some in (("all", rows), ("dates", rows[:1] * 3)):
        found = list(opened(write(tmp_path / f"{name}{suffix}", some), tmp_path, streaming=streaming))
        assert found == some
        assert [type(row.get("answer")) for row in found] == [type(row.get("answer")) for row in some]
        assert [list(row) for row in found] == [list(row) for row in some]


def test_rows_of_json_keep_their_form_through_a_split(tmp_path):
    rows = [{"a": {"n": 1}}, {"a": {"m": "2021-03-01"}}, {"b": 1}]
    found = opened(write(tmp_path / "rows.jsonl", rows), tmp_path).train_test_split(test_size=1, seed=0)
    assert sorted(map(str, [*found["train"], *found["test"]])) == sorted(map(str, rows))


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_of_one_source(tmp_path, streaming):
    write(tmp_path / "set" / "a.parquet", ROWS[:1])
    write(tmp_path / "set" / "b.parquet", ROWS[1:])
    write(tmp_path / "set" / "c.parquet", [{"text": None}])
    assert list(opened(tmp_path / "set", tmp_path, streaming=streaming)) == [*ROWS, {"text": None}]
    labels = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"label": [1]}, features=labels).to_parquet(str(tmp_path / "labels.parquet"))
    rows = opened(tmp_path / "labels.parquet", tmp_path, streaming=streaming)
    assert rows.features == labels and list(rows) == [{"label": 1}]
    write(tmp_path / "set" / "c.parquet", [{"txt": "x"}])
    assert "has the columns txt, but" in refused(tmp_path / "set", tmp_path, streaming=streaming)
    write(tmp_path / "set" / "c.parquet", [{"text": [1]}])
    assert "differ in type" in refused(tmp_path / "set", tmp_path, streaming=streaming)
    (tmp_path / "set" / "c.parquet").write_bytes((tmp_path / "set" / "a.parquet").read_bytes()[:-9])
    assert "cannot be read as parquet" in refused(tmp_path / "set", tmp_path, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_columns_of_types_that_rows_cannot_hold_are_left_out(tmp_path, streaming):
    texts = pyarrow.array(["a", "b", "a"])
    extra = pyarrow.array([[("k", "v")]] * 3, pyarrow.map_(pyarrow.string(), pyarrow.string()))
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": texts.dictionary_encode(), "extra": extra, "n": [1, 2, 3]}), path)
    source = open_source(str(path), split="train", cache_dir=tmp_path / "cache", streaming=streaming)
    assert list(source.rows) == [{"text": text, "n": n} for text, n in (("a", 1), ("b", 2), ("a", 3))]
    assert source.unread == ("extra",)
    parquet.write_table(pyarrow.table({"extra": extra}), path)
    said = refused(path, tmp_path, streaming=streaming)
    assert "has no column of a type that can be read: extra (map<string, string" in said
    parquet.write_table(pyarrow.table([texts, texts], names=["text", "text"]), path)
    assert "has the column 'text' 2 times" in refused(path, tmp_path, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_text_of_a_table_that_is_no_text_is_named(tmp_path, streaming):
    ends = pyarrow.py_buffer(struct.pack("<4i", 0, 2, 4, 8))
    texts = pyarrow.StringArray.from_buffers(3, ends, pyarrow.py_buffer(b"okok\xff\xfeab"))
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": texts}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet', row 3 has bytes in the column 'text' that are not UTF-8 text"):
        list(opened(tmp_path / "rows.parquet", tmp_path, streaming=streaming))


def test_a_table_whose_description_is_damaged_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    for metadata in (b'{"info:', b'{"info": {"features": {"text": {"_type": "Nothing"}}}}'):
        parquet.write_table(pyarrow.table({"text": ["a"]}).replace_schema_metadata({b"huggingface": metadata}), path)
        assert "describes its columns in a way that datasets cannot read" in refused(path, tmp_path)
    kept = write(path, [{"txt": "one"}]).read_bytes()
    path.write_bytes(kept.replace(b"txt", b"t\xfft"))
    assert "cannot be read as parquet" in refused(path, tmp_path)


def test_class_names_stay_beside_a_column_that_is_left_out(tmp_path):
    labels = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"label": [1]}, features=labels).to_parquet(str(tmp_path / "rows.parquet"))
    table = parquet.read_table(tmp_path / "rows.parquet")
    extra = pyarrow.array([[("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    parquet.write_table(table.append_column("extra", extra), tmp_path / "rows.parquet")
    assert opened(tmp_path / "rows.parquet", tmp_path).features == labels


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_text_in_unicode_of_any_width_is_read(tmp_path, suffix, encoding):
    rows = [{"text": "na\u00efve \U0001f40b"}, {"text": "\u2028 \u0d0a"}]
    path = write(tmp_path / f"rows{suffix}", rows)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    for streaming in (False, True):
        assert list(opened(path, tmp_path, streaming=streaming)) == rows


@pytest.mark.parametrize(
    ("written", "said", "do"),
    [
        (
            '{"text": "a"}\n'.encode("utf-16-le"),
            "may be UTF-16LE without a byte-order mark",
            "iconv -f utf-16le -t utf-8",
        ),
        (
            '{"text": "a"}\n'.encode("utf-16-be"),
            "may be UTF-16BE without a byte-order mark",
            "iconv -f utf-16be -t utf-8",
        ),
        (
            '{"text": "a"}\n'.encode("utf-32-le"),
            "may be UTF-32LE without a byte-order mark",
            "iconv -f utf-32le -t utf-8",
        ),
        (
            "\ufeff{".encode("utf-16-le") + b"\x00\xd8",
            "starts with the byte-order mark of UTF-16, but is not that",
            "anew",
        ),
        (b'{"text": "\xe9"}\n', "line 1 is not UTF-8 text (byte 0xe9)", "iconv -f windows-1252 -t utf-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer", "git lfs pull"),
        (
            gzip.compress(b'{"text": "a"}\n'),
            "is compressed (gzip), and its name does not say so",
            "rename it to rows.jsonl.gz",
        ),
        (b'{"text": "\\ud83d"}\n', 'line 1 holds half a character in "text"', "write the row anew"),
    ],
    ids=["utf-16le", "utf-16be", "utf-32le", "bad utf-16", "latin1", "lfs", "gzip", "surrogate"],
)
def test_a_file_that_is_not_text_is_named_for_what_it_is(tmp_path, written, said, do):
    (tmp_path / "rows.jsonl").write_bytes(written)
    for streaming in (False, True):
        message = refused(tmp_path / "rows.jsonl", tmp_path, streaming=streaming)
        assert message.startswith(f"data.train={str(tmp_path / 'rows.jsonl')!r}")
        assert said in message and do in message


def test_pointers_in_the_place_of_other_files_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    (tmp_path / "rows.parquet").write_bytes(pointer)
    assert "is a Git LFS pointer" in refused(tmp_path / "rows.parquet", tmp_path)
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    next((tmp_path / "set").glob("*.arrow")).write_bytes(pointer)
    assert "is a Git LFS pointer" in refused(tmp_path / "set", tmp_path)


def test_a_directory_with_files_named_after_splits(tmp_path):
    write(tmp_path / "set" / "train-00000-of-00002.jsonl", ROWS[:1])
    write(tmp_path / "set" / "train-00001-of-00002.jsonl", ROWS[1:])
    write(tmp_path / "set" / "test.jsonl", ROWS[:2])
    assert list(opened(tmp_path / "set", tmp_path)) == ROWS
    assert list(opened(tmp_path / "set", tmp_path, split="test")) == ROWS[:2]
    said = refused(tmp_path / "set", tmp_path, split="tets", field="data.evaluation")
    assert "data.evaluation_split='tets' is not a split of data.evaluation=" in said
    assert "(did you mean 'test'?)" in said and "one of: test, train" in said


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/part-0.jsonl", "test/part-0.jsonl"),
        ("data/training/a/part-0.jsonl", "data/eval/part-0.jsonl"),
        ("apples_train.jsonl", "apples_test.jsonl"),
        ("Train.jsonl", "my.testing-00.jsonl"),
    ],
)
def test_a_split_is_told_by_the_names_of_files_and_folders(tmp_path, train, test):
    write(tmp_path / "set" / train, ROWS[:1])
    write(tmp_path / "set" / test, ROWS[1:])
    assert list(opened(tmp_path / "set", tmp_path)) == ROWS[:1]
    assert list(opened(tmp_path / "set", tmp_path, split="test", field="data.evaluation")) == ROWS[1:]
    assert "data.evaluation_split='validation' is not a split of" in refused(
        tmp_path / "set", tmp_path, split="validation", field="data.evaluation"
    )


def test_a_split_of_any_name_and_files_of_none(tmp_path):
    write(tmp_path / "set" / "fold1_a.jsonl", ROWS[:1])
    write(tmp_path / "set" / "dev.jsonl", ROWS[1:])
    write(tmp_path / "set" / "contest.jsonl", ROWS)
    found = open_source(str(tmp_path / "set"), split="fold1", cache_dir=tmp_path / "cache")
    assert list(found.rows) == ROWS[:1] and [path.name for path in found.left_out] == ["contest.jsonl"]
    assert list(opened(tmp_path / "set", tmp_path, split="validation")) == ROWS[1:]


def found(tmp_path, *names, split="train") -> list[str]:
    for name in names:
        write(tmp_path / "set" / f"{name}.jsonl", [{"text": name}])
    source = open_source(str(tmp_path / "set"), split=split, cache_dir=tmp_path / "cache")
    assert sorted([*source.files, *source.left_out]) == sorted({*source.files, *source.left_out})
    return [row["text"] for row in source.rows]


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["train/part-0", "train/training_01", "train/train_02"], "train", [0, 2, 1]),
        (["train_v1", "training_v2", "test"], "train", [0, 1]),
        (["val_math", "validation_code", "train"], "validation", [0, 1]),
        (["val_math", "validation_code", "train"], "dev", [0, 1]),
        (["train/test_cases", "test/training_set"], "train", [0]),
        (["train/test_cases", "test/training_set"], "test", [1]),
        (["my_unit_test_generation", "code"], "train", [1, 0]),
        (["a_train_sft", "a_test_sft"], "train", [0]),
        (["c4-train.00000-of-01024", "c4-validation.00000-of-00008"], "train", [0]),
        (["apples_train_v2", "apples_test_v2", "my_dev_notes"], "test", [1]),
    ],
)
def test_all_files_of_a_split_are_read_and_no_others(tmp_path, names, split, read):
    assert found(tmp_path, *names, split=split) == [names[number] for number in read]


def test_a_split_read_from_a_name_by_mistake_is_traced_to_it(tmp_path):
    with pytest.raises(DataError) as caught:
        found(tmp_path, "test_generation", "code")
    message = str(caught.value)
    assert "the name of 'test_generation.jsonl' says 'test'" in message
    assert (
        f"do this:  for files whose names say no split, give a pattern: data.train='{tmp_path / 'set'}/**/*.jsonl'"
        in (message)
    )
    assert len(list(opened(tmp_path / "set" / "**" / "*.jsonl", tmp_path))) == 2


def test_a_file_of_two_splits_is_refused(tmp_path):
    write(tmp_path / "set" / "train_test.jsonl")
    assert "says several splits, train and test" in refused(tmp_path / "set", tmp_path)


def test_saved_sets_in_a_directory(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "sets" / "sub" / "one"))
    said = refused(tmp_path / "sets", tmp_path)
    assert "holds data sets written by `save_to_disk`: sub/one" in said
    assert f"data.train={str(tmp_path / 'sets' / 'sub' / 'one')!r}" in said
    write(tmp_path / "sets" / "train.jsonl", ROWS[:1])
    (tmp_path / "sets" / "dataset_info.json").write_text("{}")
    source = open_source(str(tmp_path / "sets"), split="train", cache_dir=tmp_path / "cache")
    assert list(source.rows) == ROWS[:1] and source.left_out == (tmp_path / "sets" / "sub" / "one",)


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
    (tmp_path / "openai.jsonl").touch()
    (tmp_path / "archive").mkdir()
    for name, meant in (("chats.csv", "chats.jsonl"), ("Chats.json", "chats.jsonl"), ("archives", "archive")):
        assert f"(did you mean {meant!r}?)" in refused(tmp_path / name, tmp_path)
    for name in ("nope.jsonl", "x.jsonl"):
        assert "did you mean" not in refused(tmp_path / name, tmp_path)


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
        ('{\n "text": "a",\n}', "comma before"),
    ],
)
def test_bad_json_lists_are_named(tmp_path, content, said):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert said in refused(path, tmp_path)


def test_a_file_read_before_is_not_read_again(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl")
    for streaming in (False, True):
        opened(path, tmp_path, streaming=streaming)

    def never(path):
        raise AssertionError("read again")
        yield

    monkeypatch.setattr("toolkit.data.reading.files.json_texts", never)
    assert list(opened(path, tmp_path)) == ROWS
    monkeypatch.setattr("toolkit.data.reading.tables.json_texts", never)
    assert list(opened(path, tmp_path)) == ROWS
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        opened(write(path, ROWS[:2]), tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
def test_rows_go_to_the_cache_in_batches(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"rows{suffix}", ROWS * 1000)
    monkeypatch.setattr(datasets.Features, "encode_example", lambda *_: pytest.fail("a single row was converted"))
    assert list(opened(path, tmp_path)) == ROWS * 1000


def test_files_that_are_not_what_their_name_says(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4,5\n")
    assert "line 3 has 3 fields, the header 2" in refused(tmp_path / "a.csv", tmp_path)
    (tmp_path / "a.parquet").write_text("no parquet")
    assert "cannot be read as parquet: " in refused(tmp_path / "a.parquet", tmp_path)
    (tmp_path / "header.csv").write_text("a,b\n")
    assert "has no rows" in refused(tmp_path / "header.csv", tmp_path)


def test_unsupported_names(tmp_path):
    for name, hint in (("a.xlsx", "convert it"), ("a", "convert it")):
        (tmp_path / name).write_text("x")
        said = refused(tmp_path / name, tmp_path)
        assert (
            "which is not read" in said
            and hint in said
            and ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt, all but .parquet also with .gz" in said
        )
    (tmp_path / "empty").mkdir()
    assert "holds no data file" in refused(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_hub_name_without_a_hub(tmp_path, name):
    said = refused(name, tmp_path)
    assert f"data.train={name!r} is no local file or directory, and of the caches {tmp_path}" in said
    assert "none has a data set of this name; the hub: HF_HUB_OFFLINE=1 is set, so it is not asked" in said
    assert "or unset HF_HUB_OFFLINE" in said
    assert "an existing path, a name that `toolkit fetch` knows, or the name of a hub data set" in said


def test_files_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        said = refused(path, tmp_path)
    finally:
        if user == 0:
            os.seteuid(0)
    assert "Permission denied" in said and "change the permissions" in said


def test_the_loader_is_quiet(tmp_path, capfd):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4,5\n")
    refused(tmp_path / "a.csv", tmp_path)
    opened(write(tmp_path / "rows.jsonl"), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.fixture
def directory_as_hub(tmp_path, monkeypatch):
    """The hub's own loader on a directory stands in for a data set that was found; `is_dir` and a network are forgotten."""
    monkeypatch.setattr("toolkit.data.reading.hub_rows.why_out_of_reach", lambda: None)

    def load(split="train", streaming=False):
        return open_hub(Hub(str(tmp_path / "set"), split, None, streaming, tmp_path / "cache"), "data.train")

    return load


def test_a_hub_data_set_without_the_split(tmp_path, directory_as_hub):
    write(tmp_path / "set" / "train.jsonl")
    with pytest.raises(DataError) as caught:
        directory_as_hub("tset")
    assert "with split 'tset' and data.subset=None: Unknown split \"tset\". Should be one of ['train']" in str(
        caught.value
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt", ".csv.gz"])
def test_files_of_the_hub_that_describe_no_types_are_read_as_they_are_written(
    tmp_path, directory_as_hub, monkeypatch, suffix
):
    rows = [{"text": value} for value in ("NA", "007", "2021-03-01", "None")]
    plain = write(tmp_path / f"plain{suffix.removesuffix('.gz')}", rows).read_bytes()
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / f"train{suffix}"
    path.write_bytes(gzip.compress(plain) if suffix.endswith(".gz") else plain)
    assert directory_as_hub() == [path]
    streamed = directory_as_hub(streaming=True)
    assert "datasets guesses the types of its columns" in streamed.remarks[0] and len(list(streamed.rows)) == 4
    monkeypatch.setattr("toolkit.data.reading.hub_rows.why_out_of_reach", lambda: "it is gone")
    assert directory_as_hub() == [path]  # remembered
    monkeypatch.setattr("toolkit.data.reading.sources.open_hub", lambda *_: [path])
    assert list(opened("someone/rows", tmp_path)) == rows


def test_a_hub_data_set_that_describes_its_columns_is_loaded_by_that(tmp_path, directory_as_hub):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "set" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': 'no'\n          '1': 'yes'\n---\n"
    )
    read = directory_as_hub()
    assert read.rows.features["label"].names == ["no", "yes"] and read.remarks == ()
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  sep: ';'\n---\n"
    )
    assert directory_as_hub().rows.column_names == ["text,label"]
