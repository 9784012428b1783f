"""The store: encoded once, killed or raced without harm, errors with row numbers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from toolkit.data.columns import GrowingArray
from toolkit.data.encoding import Encoder
from toolkit.data.store import prepare
from toolkit.errors import DataError, StorageError

ROWS = [{"n": length} for length in (3, 9, 1, 0, 5, 4)]


def encode(row):
    """`n` tokens 0..n-1, all trained but the first; n = 4 gives an example without loss."""
    ids = np.arange(row["n"], dtype=np.int32)
    labels = np.full_like(ids, -100) if row["n"] == 4 else ids.copy()
    labels[:1] = -100
    return [{"input_ids": ids, "labels": labels}]


def make(cache_dir, rows=ROWS, encode=encode, overlong="truncate", name="data.train", fingerprint="abc", progress=None):
    encoder = Encoder(encode, 6, overlong, name, rows=rows)
    return prepare(rows, encoder, cache_dir=cache_dir, fingerprint=fingerprint, progress=progress)


def test_examples_lengths_and_counts(tmp_path):
    store = make(tmp_path)
    assert len(store) == 3 and store.lengths.tolist() == [3, 6, 5]
    assert store[1]["input_ids"].tolist() == [0, 1, 2, 3, 4, 5]
    assert store[2]["labels"].tolist() == [-100, 1, 2, 3, 4]
    assert store.num_trained_tokens == 2 + 5 + 4 and store.num_tokens == 14 and store.num_rows == 6
    assert store.counts.describe() == (
        "3 kept, 1 of them cut to batch.sequence_length; left out: 1 empty, 2 with nothing to learn"
    )
    assert store[0]["input_ids"].dtype == np.int32 and store[0]["input_ids"].flags.writeable
    with pytest.raises(IndexError, match="example 3 of 3"):
        store[3]


def test_columns_of_different_lengths(tmp_path):
    store = make(tmp_path, encode=lambda row: [{"input_ids": np.arange(row["n"]), "labels": np.array([row["n"] % 2])}])
    assert [store[index]["labels"].tolist() for index in range(len(store))] == [[1], [1], [1], [1], [0]]


def test_the_second_time_nothing_is_encoded(tmp_path):
    make(tmp_path)

    def never(row):
        raise AssertionError("encoded again")

    assert make(tmp_path, encode=never).lengths.tolist() == [3, 6, 5]
    with pytest.raises(AssertionError, match="encoded again"):
        make(tmp_path, encode=never, fingerprint="other")


def test_progress_reaches_the_total(tmp_path):
    seen = []
    make(tmp_path, rows=ROWS * 50, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(100, 300), (200, 300), (300, 300)]


def test_more_tokens_than_one_flush(tmp_path):
    array = GrowingArray(tmp_path / "a.npy", np.int32)
    for start in range(0, 3_000_000, 700_000):
        array.append(np.arange(start, start + 700_000))
    array.close()
    loaded = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert loaded.dtype == np.int32 and (loaded == np.arange(3_500_000)).all()


def test_errors_name_the_row(tmp_path):
    with pytest.raises(DataError) as caught:
        make(tmp_path, overlong="error")
    assert str(caught.value).startswith("row 2 of data.train: an example has 9 tokens and batch.sequence_length is 6")

    def broken(row):
        raise KeyError(row["n"])

    with pytest.raises(KeyError) as fault:
        make(tmp_path, encode=broken, name="data.evaluation")
    assert fault.value.__notes__ == ["while encoding row 1 of data.evaluation"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_fault_of_several_rows_is_said_to_be_one(tmp_path):
    def refusing(row):
        if row["n"] < 7:
            raise DataError("no answer", expected="one", do="add it")
        if row["n"] == 7:
            raise DataError("no question", expected="one", do="add it")
        return []

    with pytest.raises(DataError) as caught:
        make(tmp_path, rows=[{"n": n} for n in (9, 5, 7, 6, 2)], encode=refusing)
    assert caught.value.what == "row 2 of data.train: no answer (there, and in 3 of 5 rows)"


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"no token of the 2 rows of data.train carries loss \(left out: 2 with nothing to learn\)"
    ):
        make(tmp_path, rows=[{"n": 4}, {"n": 1}])
    with pytest.raises(
        DataError,
        match=r"none of the 2 rows of data.train gave an example \(left out: 1 empty, 1 longer than batch.sequence_length\)",
    ):
        make(tmp_path, rows=[{"n": 9}, {"n": 0}], overlong="drop")


def test_changing_columns_are_refused(tmp_path):
    def changing(row):
        [example] = encode(row)
        return [example | ({"extra": example["labels"]} if row["n"] == 5 else {})]

    with pytest.raises(DataError, match=r"has the columns \['extra', 'input_ids', 'labels'\], the ones before it"):
        make(tmp_path, encode=changing)


def slow_encode(row):
    with Path(os.environ["ENCODED_LOG"]).open("a") as log:
        log.write("x")
    time.sleep(0.02)
    return encode(row)


def slow_make(cache_dir, num_rows=20):
    make(Path(cache_dir), rows=[{"n": 3}] * num_rows, encode=slow_encode)


def test_racing_processes_encode_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ENCODED_LOG", str(tmp_path / "log"))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=slow_make, args=(tmp_path / "cache",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "x" * 20
    assert len(make(tmp_path / "cache")) == 20


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("ENCODED_LOG", str(tmp_path / "log"))
    process = multiprocessing.get_context("fork").Process(target=slow_make, args=(tmp_path / "cache", 2000))
    process.start()
    while not (tmp_path / "log").exists() or (tmp_path / "log").stat().st_size < 3:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert [path.name[:8] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["abc.tmp-"]
    assert make(tmp_path / "cache").lengths.tolist() == [3, 6, 5]
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["abc"]


def test_another_host_that_finished_first_is_kept(tmp_path):
    """A network file system without locks: the result appears while we are still encoding."""

    def overtaken(row):
        if not (tmp_path / "shared" / "abc").exists():
            make(tmp_path / "elsewhere").directory.rename(tmp_path / "shared" / "abc")
        return encode({"n": 2})

    assert make(tmp_path / "shared", encode=overtaken).lengths.tolist() == [3, 6, 5]


def test_a_full_disk_has_its_message(tmp_path):
    def full(row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="no space left under"):
        make(tmp_path, encode=full)


def test_a_cache_that_cannot_be_written_has_its_message(tmp_path):
    def refused(row):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(DataError, match=r"cannot be written \(Permission denied\)"):
        make(tmp_path, encode=refused)
