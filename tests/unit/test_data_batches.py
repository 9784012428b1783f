"""Batches of steps: the same for every world size, resumable from a step, prefetched by a thread that ends."""

from __future__ import annotations

import json
import threading

import datasets
import numpy as np
import pytest
import torch

from toolkit.data.batches import StoredBatches, StreamedBatches, evaluation_batches
from toolkit.data.encoding import Encoder
from toolkit.data.order import Order
from toolkit.data.packing import best_fit
from toolkit.data.prefetch import ahead
from toolkit.data.store import prepare
from toolkit.errors import CheckpointError, DataError

CAPACITY = 16
LENGTHS = np.random.default_rng(0).integers(2, 13, size=60).tolist()


def encode(row):
    """An example of `length` tokens, each of them the row's number, so that a batch tells which rows are in it."""
    ids = np.full(row["length"], row["number"], dtype=np.int32)
    labels = ids.copy()
    labels[:1] = -100
    return [{"input_ids": ids, "labels": labels}]


def collate(sequences):
    """[B, CAPACITY] tensors, padded with -1 / -100."""
    batch = {}
    for name, padding in (("input_ids", -1), ("labels", -100)):
        rows = [np.concatenate([example[name] for example in sequence]) for sequence in sequences]
        padded = [np.pad(row, (0, CAPACITY - len(row)), constant_values=padding) for row in rows]
        batch[name] = torch.from_numpy(np.stack(padded))
    return batch


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = [{"number": number, "length": length} for number, length in enumerate(LENGTHS)]
    directory = tmp_path_factory.mktemp("store")
    return prepare(rows, Encoder(encode, CAPACITY, "error"), cache_dir=directory, fingerprint="f")


def stored(store, rank=0, world_size=1, micro_size=1):
    sequences = best_fit(store.lengths, CAPACITY)
    order = Order(len(sequences), 4, seed=1, shuffle=True)
    return StoredBatches(store, sequences, order, collate, rank, world_size, micro_size)


def streamed(rank=0, world_size=1, micro_size=1, encode=encode, window_rows=16, **changes):
    stream = datasets.Dataset.from_dict({"number": range(60), "length": LENGTHS}).to_iterable_dataset()
    options = {"packing": True, "shuffle": True, "seed": 1} | changes
    return StreamedBatches(
        rows=stream, encoder=Encoder(encode, CAPACITY, "error"), global_size=4, collate=collate, rank=rank,
        world_size=world_size, micro_size=micro_size, window_rows=window_rows, **options,
    )  # fmt: skip


def tokens(batch):
    """The micro-batches of a step as nested lists."""
    return [micro["input_ids"].tolist() for micro in batch.micro_batches]


def global_rows(source, world_size, micro_size, steps=6):
    """For every step the set of packed sequences over all ranks."""
    ranks = [list(source(rank, world_size, micro_size).iterate(0, steps)) for rank in range(world_size)]
    return [
        sorted(row for batch in step for micro in tokens(batch) for row in micro) for step in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("kind", ["stored", "streamed"])
@pytest.mark.parametrize(("world_size", "micro_size"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_the_global_batch_does_not_depend_on_the_world_size(store, kind, world_size, micro_size):
    def source(rank, world_size, micro_size):
        return (
            stored(store, rank, world_size, micro_size) if kind == "stored" else streamed(rank, world_size, micro_size)
        )

    assert global_rows(source, world_size, micro_size) == global_rows(source, 1, 4)


@pytest.mark.parametrize("prefetch", [0, 3, 50])
def test_counts_are_of_the_global_batch(store, prefetch):
    for source in (stored(store, 1, 2, 1), streamed(1, 2, 1)):
        whole = stored(store, 0, 1, 4) if isinstance(source, StoredBatches) else streamed(0, 1, 4)
        batches = list(source.iterate(0, 5, prefetch))
        for batch, complete in zip(batches, whole.iterate(0, 5), strict=True):
            [micro] = complete.micro_batches
            assert len(batch.micro_batches) == 2 and batch.micro_batches[0]["input_ids"].shape == (1, CAPACITY)
            assert batch.num_tokens == int((micro["input_ids"] >= 0).sum())
            assert batch.num_samples == sum(len(set(row) - {-1}) for row in micro["input_ids"].tolist())
        assert [batch.step for batch in batches] == [0, 1, 2, 3, 4]


def test_stored_batches_go_on_from_any_step(store):
    whole = [(batch.step, batch.epoch, tokens(batch)) for batch in stored(store).iterate(0, 12)]
    rest = [
        (batch.step, batch.epoch, tokens(batch)) for batch in stored(store).iterate(7, 12, 4, stored(store).state(7))
    ]
    assert rest == whole[7:]
    assert whole[-1][1] == pytest.approx(48 / len(best_fit(LENGTHS, CAPACITY)))
    with pytest.raises(CheckpointError, match="the saved position in the data is of step 7"):
        stored(store).iterate(8, 12, 4, {"step": 7})


def test_every_row_once_per_epoch(store):
    sequences = best_fit(store.lengths, CAPACITY)
    seen = [row for batch in stored(store).iterate(0, len(sequences)) for micro in tokens(batch) for row in micro]
    assert sorted(number for row in seen[: len(sequences)] for number in set(row) - {-1}) == list(range(60))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_a_stream_goes_on_exactly_mid_window(packing, shuffle):
    options = {"packing": packing, "shuffle": shuffle}
    whole = [(batch.epoch, tokens(batch)) for batch in streamed(**options).iterate(0, 40)]
    assert whole[-1][0] >= 2  # the stream ended and started again
    for stop in (1, 5, 13, 27):
        first = streamed(**options)
        for batch in first.iterate(0, stop, prefetch=8):
            last = batch.step
        state = json.loads(json.dumps(first.state(last + 1)))
        rest = [(batch.epoch, tokens(batch)) for batch in streamed(**options).iterate(stop, 40, 8, state)]
        assert rest == whole[stop:]


def test_resuming_a_stream_encodes_only_from_its_window_on():
    source = streamed()
    list(source.iterate(0, 5))
    state = source.state(5)
    assert state["passes"] == 0 and state["rows"] >= 16 and state["offset"] > 0
    encoded = []

    def noted(row):
        encoded.append(row["number"])
        return encode(row)

    next(streamed(encode=noted).iterate(5, 6, 0, state))
    assert encoded[0] == state["rows"]


def test_a_stream_without_a_state_is_replayed():
    whole = [tokens(batch) for batch in streamed().iterate(0, 12)]
    assert [tokens(batch) for batch in streamed().iterate(9, 12)] == whole[9:]


def test_a_stream_shows_every_row_once_per_pass():
    seen = []
    for batch in streamed(packing=False).iterate(0, 15):  # 60 rows, 4 a step
        seen += [row[0] for micro in tokens(batch) for row in micro]
    assert sorted(seen) == list(range(60)) and seen != sorted(seen)
    assert sorted(seen[:16]) == list(range(16))  # shuffled inside windows only
    unshuffled = [
        row[0] for batch in streamed(packing=False, shuffle=False).iterate(0, 15) for m in tokens(batch) for row in m
    ]
    assert unshuffled == list(range(60))


def test_the_state_of_another_stream_is_refused():
    source = streamed()
    list(source.iterate(0, 2))
    with pytest.raises(CheckpointError, match="is of step 2 with windows of 16 rows"):
        next(streamed(window_rows=8).iterate(2, 4, 0, source.state(2)))
    with pytest.raises(ValueError, match="not at 9"):
        source.state(9)


def test_a_stream_without_anything_to_train_is_refused():
    def nothing(row):
        return [{"input_ids": np.arange(3), "labels": np.full(3, -100)}]

    with pytest.raises(DataError, match=r"no token of the 60 rows of data\.train carries loss"):
        next(streamed(encode=nothing).iterate(0, 1, 2))


@pytest.mark.parametrize(("world_size", "micro_size"), [(1, 1), (2, 3), (3, 2), (4, 8)])
def test_evaluation_gives_every_rank_the_same_number_and_every_sequence_once(store, world_size, micro_size):
    sequences = best_fit(store.lengths, CAPACITY)
    ranks = [
        list(evaluation_batches(store, sequences, collate, rank, world_size, micro_size)) for rank in range(world_size)
    ]
    numbers = [number for batches in ranks for batch in batches for number in batch.numbers if number is not None]
    assert sorted(numbers) == list(range(len(store))), "each example once"
    for batch in (batch for batches in ranks for batch in batches):
        assert len(batch.numbers) == len(batch.examples)
        for number, example in zip(batch.numbers, batch.examples, strict=True):
            assert number is None or example["input_ids"].tolist() == store[number]["input_ids"].tolist()
    ranks = [[batch.tensors for batch in batches] for batches in ranks]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch["input_ids"].shape == (micro_size, CAPACITY) for batches in ranks for batch in batches)
    real, fillers = [], 0
    for batch in (batch for batches in ranks for batch in batches):
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            if set(labels) == {-100}:
                fillers += 1
            else:
                real.append(ids)
    expected = [collate([[store[index] for index in sequence]])["input_ids"][0].tolist() for sequence in sequences]
    assert sorted(real) == sorted(expected)
    assert fillers == -len(sequences) % (world_size * micro_size)


def test_evaluation_stops_at_max_sequences(store):
    sequences = best_fit(store.lengths, CAPACITY)
    for world_size, micro_size, batches in ((1, 1, 3), (2, 1, 2), (2, 2, 1), (4, 8, 1)):
        found = [
            [
                batch.tensors
                for batch in evaluation_batches(
                    store, sequences, collate, rank, world_size, micro_size, max_sequences=3
                )
            ]
            for rank in range(world_size)
        ]
        assert {len(of_rank) for of_rank in found} == {batches}
        real = [
            ids
            for batch in (batch for of_rank in found for batch in of_rank)
            for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
            if set(labels) != {-100}
        ]
        wanted = [collate([[store[index] for index in sequence]])["input_ids"][0].tolist() for sequence in sequences]
        assert sorted(real) == sorted(wanted[:3])
    assert list(evaluation_batches(store, [], collate, 0, 2, 1)) == []


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_runs_ahead_but_not_further_than_its_depth():
    made, third = [], threading.Event()

    def numbers():
        for number in range(100):
            made.append(number)
            if number == 3:
                third.set()
            yield number

    reader = ahead(numbers(), depth=2)
    assert next(reader) == 0
    assert third.wait(10)  # 1 and 2 wait in the queue, 3 in the thread's hand
    assert len(made) == 4
    assert next(reader) == 1
    reader.close()
    assert prefetch_threads() == [] and len(made) <= 5


def test_prefetch_passes_the_error_on_at_its_place():
    def failing():
        yield 1
        raise DataError("bad row", expected="good rows", do="repair it")

    reader = ahead(failing(), depth=4)
    assert next(reader) == 1
    with pytest.raises(DataError, match="bad row"):
        next(reader)
    assert prefetch_threads() == []


def test_prefetch_of_everything_ends_its_thread(store):
    assert len(list(stored(store).iterate(0, 5, prefetch=2))) == 5
    assert prefetch_threads() == []
