"""Any range of any shard, read from pieces that were cut otherwise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from toolkit.checkpoint.boxes import boxes
from toolkit.models.shards import Shard

SHAPE = (6, 10, 3)
WHOLE = torch.arange(180, dtype=torch.float32).view(SHAPE)
LAYOUTS: dict[str, list[Shard | None]] = {
    "whole": [None],
    "rows": [Shard(SHAPE, 1, ((0, 5),)), Shard(SHAPE, 1, ((5, 5),))],
    "packed": [Shard(SHAPE, 1, ((0, 2), (4, 3))), Shard(SHAPE, 1, ((2, 2), (7, 3)))],
    "three": [Shard(SHAPE, 1, ((0, 4),)), Shard(SHAPE, 1, ((4, 4),)), Shard(SHAPE, 1, ((8, 2),))],
}


def flat(shard: Shard | None) -> np.ndarray:
    part = WHOLE if shard is None else shard.cut(WHOLE)
    return part.contiguous().view(-1).numpy().copy()


def read(written: str, wanted: Shard | None, start: int, length: int) -> np.ndarray:
    """[start, start + length) of `wanted` from pieces of layout `written`, each cut in three."""
    values = np.full(length, np.nan, np.float32)
    found = 0
    for shard in LAYOUTS[written]:
        numbers = flat(shard)
        for first, stop in itertools.pairwise([0, 7, 31, len(numbers)]):
            for there in boxes(SHAPE, shard, 1, first, stop - first):
                for here in boxes(SHAPE, wanted, 1, start, length):
                    met = here.meet(there)
                    if met is not None:
                        met[0].view(values)[:] = met[1].view(numbers[first:stop])
                        found += met[0].rows * met[0].columns
    assert found == length, "every element is found exactly once"
    return values


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize("written", LAYOUTS)
def test_every_layout_reads_every_other(written: str, wanted: str) -> None:
    for shard in LAYOUTS[wanted]:
        expected = flat(shard)
        for start, length in [(0, len(expected)), (0, 1), (4, 29), (len(expected) - 17, 17), (15, 15)]:
            assert np.array_equal(read(written, shard, start, length), expected[start : start + length])


def test_a_vector_and_a_number() -> None:
    assert [box.columns for box in boxes((5,), None, 0, 1, 3)] == [3]
    assert [box.columns for box in boxes((), None, 0, 0, 1)] == [1]
