"""Steps whose sequences are of one length: every sequence once in each epoch, by seed and epoch alone, with little padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toolkit.data.order import Order, shard

LENGTHS = np.random.default_rng(3).integers(1, 1000, 203)


def order(count: int = 203, size: int = 8, seed: int = 1, *, grouped: bool = True) -> Order:
    return Order(count, size, seed, True, lengths=LENGTHS[:count] if grouped else None)


@pytest.mark.parametrize(("count", "size"), [(203, 8), (200, 8), (7, 8), (8, 8), (17, 8), (3, 8), (5, 1)])
def test_an_epoch_has_every_sequence_once(count: int, size: int) -> None:
    found = [index for step in range(4 * count) for index in order(count, size).positions(step)]
    for epoch in range(4 * size):
        assert sorted(found[epoch * count : (epoch + 1) * count]) == list(range(count)), epoch


def test_a_step_depends_on_seed_and_step_alone() -> None:
    one = order()
    in_order = [one.positions(step) for step in range(60)]
    assert [order().positions(step) for step in (59, 3, 26, 25, 0)] == [in_order[step] for step in (59, 3, 26, 25, 0)]
    assert order(seed=2).positions(3) != in_order[3]
    assert sorted(in_order[0]) != sorted(in_order[26]), "another epoch, other steps"


def padding(found: Order, micro_size: int = 2) -> float:
    """Share of what micro-batches hold that is none of their sequences', over four epochs."""
    held = real = 0
    for step in range(100):
        for indices in shard(found.positions(step), 0, 1, micro_size):
            held += int(max(LENGTHS[indices])) * len(indices)
            real += int(LENGTHS[indices].sum())
    return 1 - real / held


def test_little_is_padding() -> None:
    assert padding(order()) < 0.06 < 0.2 < padding(order(grouped=False))
    assert padding(order(), 8) < 0.2 < 0.4 < padding(order(grouped=False), 8)


def test_ranks_have_work_of_one_size_at_a_time() -> None:
    """Micro-batches that are computed at the same time are neighbours in length."""
    several = [shard(order().positions(3), rank, 2, 2) for rank in range(2)]
    assert sorted(index for part in several for batch in part for index in batch) == sorted(order().positions(3))
    for mine, other in zip(*several, strict=True):
        assert max(LENGTHS[mine]) <= min(LENGTHS[other])


def test_the_longest_sequence_comes_first() -> None:
    """So that memory that is too small shows at once."""
    assert int(np.argmax(LENGTHS)) in order().positions(0)


def test_recipes_that_it_does_nothing_for_are_refused(tmp_path: Path) -> None:
    from tests.unit.test_effect import recipe
    from toolkit.errors import RecipeError

    grouped = {"data.group_by_length": True}
    recipe({**grouped, "data.packing": False})
    for idle in ({}, {"data.packing": False, "data.streaming": True}, {"data.packing": False, "data.shuffle": False}):
        with pytest.raises(RecipeError, match=r"data\.group_by_length=True has no effect with"):
            recipe({**grouped, **idle})
    whisper = {"task.name": "speech_seq2seq", "data.packing": False, "data.overlong": "drop"}
    with pytest.raises(RecipeError, match=r"Whisper reads 30 s of every recording, so none is padded to another"):
        recipe({**grouped, **whisper})
