"""Packing, making examples fit, and the order of sequences."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests import tiny
from toolkit.data.order import Order, shard
from toolkit.data.packing import Counts, best_fit, efficiency, one_each
from toolkit.data.sets.catalog import resolve
from toolkit.data.sets.docstrings import LIBRARY, standard_library
from toolkit.data.tokens import fit, num_targets
from toolkit.errors import DataError
from toolkit.models.loading import load_tokenizer
from toolkit.recipe import Model, SequenceClassification
from toolkit.tasks.labels.sequence_classification import SequenceClassificationTask


def example(length: int, trained_from: int = 1):
    ids = np.arange(length, dtype=np.int32)
    labels = ids.copy()
    labels[:trained_from] = -100
    return {"input_ids": ids, "labels": labels}


def naive_best_fit(lengths, capacity):
    """The textbook form: look at every open group."""
    groups, left = [], []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fitting = [(room, group) for group, room in enumerate(left) if room >= lengths[index]]
        if fitting:
            group = min(fitting)[1]
        else:
            group = len(groups)
            groups.append([])
            left.append(capacity)
        groups[group].append(index)
        left[group] -= lengths[index]
    return groups


def test_every_example_is_in_one_group_that_fits():
    lengths = np.random.default_rng(0).integers(1, 129, size=3000)
    groups = best_fit(lengths, 128)
    assert sorted(index for group in groups for index in group) == list(range(3000))
    assert max(int(lengths[group].sum()) for group in groups) <= 128
    assert groups == best_fit(lengths, 128) == sorted(sorted(group) for group in groups)


@pytest.mark.parametrize(
    ("shortest", "longest", "capacity"), [(1, 60, 64), (20, 60, 64), (40, 100, 256), (200, 400, 1024)]
)
def test_at_least_as_full_as_the_textbook_algorithm(shortest, longest, capacity):
    for seed in range(5):
        lengths = np.random.default_rng(seed).integers(shortest, longest, size=300).tolist()
        assert len(best_fit(lengths, capacity)) <= len(naive_best_fit(lengths, capacity))


def test_groups_are_closed_by_the_best_pair():
    # Textbook best-fit puts 6 after 10 and leaves 4 unused; 5 + 5 fills the group.
    assert best_fit([10, 6, 5, 5], 20) == [[0, 2, 3], [1]]
    assert best_fit([4, 4], 8) == [[0, 1]]
    assert best_fit([], 8) == []


def test_real_ragged_lengths_fill_98_percent():
    # Bytes / 4 is about the number of tokens of English text.
    sizes = [len(item.text) // 4 + 1 for item in standard_library(LIBRARY.fetch(Console(quiet=True)))]
    assert len(sizes) > 4000 and len(set(sizes)) > 150
    for capacity in (512, 1024):
        lengths = [min(capacity, size) for size in sizes]
        assert efficiency(lengths, best_fit(lengths, capacity), capacity) > 0.98


def test_chat_lengths_with_a_common_header_fill_98_percent():
    # No example is short enough for the gaps that longest-first leaves: textbook best-fit reaches 97 % here.
    lengths = np.random.default_rng(0).integers(55, 131, size=4000)
    assert efficiency(lengths, best_fit(lengths, 512), 512) > 0.985


def test_short_examples_are_not_left_to_the_end():
    # Many near-equal short lengths and a few long ones, as in short chats: longest-first alone fills 97.6 %.
    rng = np.random.default_rng(0)
    lengths = 49 + np.minimum(rng.gamma(2.0, 10.0, size=3800).astype(int), 134)
    for capacity in (256, 512, 1024):
        groups = best_fit(lengths, capacity)
        assert sorted(index for group in groups for index in group) == list(range(3800))
        assert max(int(lengths[group].sum()) for group in groups) <= capacity
        assert efficiency(lengths, groups, capacity) > 0.985


def test_the_chat_set_of_the_quick_start_fills_98_percent():
    tokenizer = load_tokenizer(Model(path="smollm2-135m-instruct"))
    lines = (Path(resolve("python-docstrings")) / "train.jsonl").read_text().splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    lengths = [min(512, len(ids)) for ids in tokenizer(texts)["input_ids"]]
    assert len(lengths) > 3000
    assert efficiency(lengths, best_fit(lengths, 512), 512) >= 0.985  # 99.1 % with Python 3.11


def test_packing_200_000_short_examples_takes_seconds():
    lengths = 49 + np.minimum(np.random.default_rng(1).gamma(2.0, 10.0, size=200_000).astype(int), 134)
    started = time.process_time()
    assert efficiency(lengths, best_fit(lengths, 512), 512) > 0.985
    assert time.process_time() - started < 10  # about 3 s on an idle core


def test_efficiency_counts_padding():
    assert efficiency([3, 4, 2], [[0, 1], [2]], 8) == pytest.approx(9 / 16)
    assert efficiency([], [], 8) == 0.0
    assert one_each(3) == [[0], [1], [2]]


def test_packing_200_000_examples_takes_seconds():
    lengths = np.random.default_rng(1).integers(1, 2049, size=200_000)
    started = time.process_time()
    best_fit(lengths, 2048)
    assert time.process_time() - started < 5  # about 1 s on an idle core


@pytest.mark.parametrize("lengths", [[5, 9], [0, 3]])
def test_lengths_that_cannot_be_packed_are_refused(lengths):
    with pytest.raises(ValueError, match="do not fit a capacity of 8"):
        best_fit(lengths, 8)


def test_truncate_and_drop_are_counted():
    counts = Counts()
    [cut] = fit(example(10), 8, "truncate", counts)
    assert cut["input_ids"].tolist() == list(range(8)) and len(cut["labels"]) == 8
    assert fit(example(10), 8, "drop", counts) == []
    [whole] = fit(example(8), 8, "error", counts)
    assert len(whole["input_ids"]) == 8
    assert (counts.truncated, counts.dropped, counts.split) == (1, 1, 0)
    assert counts.describe() == "1 of them cut to batch.sequence_length; left out: 1 longer than batch.sequence_length"
    assert Counts(kept=3).describe() == "" == Counts().describe()
    assert Counts(kept=1200, masked=3).describe() == "1,200 kept; left out: 3 with nothing to learn"


def test_a_class_label_is_not_cut():
    long = {"input_ids": np.arange(10, dtype=np.int32), "labels": np.array([4], dtype=np.int32)}
    [cut] = fit(long, 8, "truncate", Counts())
    assert len(cut["input_ids"]) == 8 and cut["labels"].tolist() == [4] and num_targets(cut) == 1


def test_what_closes_a_text_is_not_cut():
    ones = {"labels": np.array([4], dtype=np.int32), "closing": np.array([2], dtype=np.int32)}
    [cut] = fit({"input_ids": np.arange(10, dtype=np.int32), **ones}, 8, "truncate", Counts())
    assert cut["input_ids"].tolist() == [0, 1, 2, 3, 4, 5, 8, 9] and cut["labels"].tolist() == [4]
    [whole] = fit({"input_ids": np.arange(8, dtype=np.int32), **ones}, 8, "truncate", Counts())
    assert whole["input_ids"].tolist() == list(range(8))


def test_a_cut_text_still_ends_as_the_tokenizer_ends_texts():
    tokenizer = tiny.wordpiece_tokenizer()
    options = SequenceClassification()
    task = SequenceClassificationTask(options, tokenizer)
    rows = [{"text": "Return the path of a file.", "label": label} for label in ("class", "function")]
    task.fit(rows)
    [example] = task.encode(rows[1])
    [cut] = fit(example, 5, "truncate", Counts())
    ids = example["input_ids"].tolist()
    assert ids[-1] == tokenizer.sep_token_id and len(ids) > 6
    assert cut["input_ids"].tolist() == [*ids[:4], tokenizer.sep_token_id]
    assert task.collate([[cut]])["labels"].tolist() == [1]


def test_split_keeps_every_token_and_trains_none_across_a_cut():
    counts = Counts()
    pieces = fit(example(10), 4, "split", counts)
    assert np.concatenate([piece["input_ids"] for piece in pieces]).tolist() == list(range(10))
    assert [piece["labels"].tolist() for piece in pieces] == [[-100, 1, 2, 3], [-100, 5, 6, 7], [-100, 9]]
    assert counts.split == 1


def test_a_conversation_is_not_split():
    with pytest.raises(DataError, match=r"an example of 10 tokens that is not plain text.*data.overlong='split'"):
        fit(example(10, trained_from=5), 4, "split", Counts())


def test_overlong_error_names_both_lengths():
    with pytest.raises(DataError) as caught:
        fit(example(10), 4, "error", Counts())
    assert "an example has 10 tokens and batch.sequence_length is 4" in str(caught.value)
    assert "data.overlong to 'truncate', 'drop' or 'split'" in str(caught.value)


def test_order_shows_everything_once_per_epoch_in_another_order():
    order = Order(10, 4, seed=3, shuffle=True)
    flat = [position for step in range(15) for position in order.positions(step)]
    epochs = [flat[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert Order(10, 4, seed=3, shuffle=True).positions(7) == order.positions(7)
    assert [Order(10, 4, seed=4, shuffle=True).positions(step) for step in range(3)] != [
        order.positions(s) for s in range(3)
    ]


def test_order_without_shuffling_and_with_a_batch_larger_than_the_data():
    assert Order(3, 7, seed=0, shuffle=False).positions(1) == [1, 2, 0, 1, 2, 0, 1]


def test_steps_and_epochs():
    order = Order(10, 4, seed=0, shuffle=True)
    assert [order.steps_for(epochs) for epochs in (0.1, 1, 2, 2.1)] == [1, 3, 5, 6]
    assert order.epoch(5) == 2.0
    assert Order(30, 1, 0, True).steps_for(0.1) == 3  # 0.1 x 30 is 3.0000000000000004
    with pytest.raises(ValueError, match="num_sequences=0"):
        Order(0, 4, 0, True)


@pytest.mark.parametrize(("world_size", "micro_size"), [(1, 12), (2, 3), (3, 2), (4, 1), (12, 1)])
def test_shards_divide_the_global_batch(world_size, micro_size):
    indices = Order(100, 12, seed=0, shuffle=True).positions(0)
    shards = [shard(indices, rank, world_size, micro_size) for rank in range(world_size)]
    assert {len(micro) for rank in shards for micro in rank} == {micro_size}
    assert {len(rank) for rank in shards} == {12 // world_size // micro_size}
    assert sorted(index for rank in shards for micro in rank for index in micro) == sorted(indices)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="10 sequences do not divide into 2 ranks x 3"):
        shard(range(10), 0, 2, 3)
