"""From the flat range of one shard to the flat range of another: what lets any topology read any other's pieces.

A parameter cut along dimension d is a matrix: rows are the indices before d, columns those of d and after. A flat
range of a shard is then a few boxes of that matrix, and what two shards share is where their boxes meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.models.shards import Shard

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Box:
    """Rows [row, row + rows) x columns [column, column + columns) of a parameter, and where they lie in a flat range."""

    row: int
    rows: int
    column: int
    columns: int
    offset: int
    """Of the first element, in the flat range."""
    stride: int
    """From one row to the next, in the flat range."""

    def meet(self, other: Box) -> tuple[Box, Box] | None:
        """What both hold, as seen from this range and from the other's."""
        row, column = max(self.row, other.row), max(self.column, other.column)
        rows = min(self.row + self.rows, other.row + other.rows) - row
        columns = min(self.column + self.columns, other.column + other.columns) - column
        if rows <= 0 or columns <= 0:
            return None
        return self._inner(row, rows, column, columns), other._inner(row, rows, column, columns)

    def _inner(self, row: int, rows: int, column: int, columns: int) -> Box:
        offset = self.offset + (row - self.row) * self.stride + column - self.column
        return Box(row, rows, column, columns, offset, self.stride)

    def view(self, values: Floats) -> Floats:
        """The box inside the flat range `values`, as a matrix that shares its memory."""
        return np.lib.stride_tricks.as_strided(
            values[self.offset :], (self.rows, self.columns), (self.stride * values.itemsize, values.itemsize)
        )


def boxes(shape: tuple[int, ...], shard: Shard | None, dim: int, start: int, length: int) -> Iterator[Box]:
    """Boxes of elements [start, start + length) of a shard of a parameter of `shape`; None is the whole of it.

    `dim` is the dimension that the matrix is made for: the shard's, where there is one.
    """
    inner = math.prod(shape[dim + 1 :])
    spans = shard.spans if shard is not None else ((0, shape[dim] if shape else 1),)
    width = sum(size for _, size in spans) * inner
    placed = 0
    for first, size in spans:
        columns = size * inner
        for row, rows, begin, count in _row_blocks(start, length, width):
            low, high = max(begin, placed), min(begin + count, placed + columns)
            if low < high:
                offset = row * width + low - start
                yield Box(row, rows, first * inner + low - placed, high - low, offset, width)
        placed += columns


def _row_blocks(start: int, length: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(row, rows, first column, columns) of a flat range: the rest of a row, whole rows, the beginning of a row."""
    stop = start + length
    row, column = divmod(start, width)
    if column:
        count = min(width - column, length)
        yield row, 1, column, count
        start += count
        row += 1
    whole = (stop - start) // width
    if whole > 0:
        yield row, whole, 0, width
        start += whole * width
        row += whole
    if start < stop:
        yield row, 1, 0, stop - start
