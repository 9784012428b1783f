"""Columns of arrays on disk: one growing .npy file per column, one for where each example ends."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from toolkit.data.example import Example
from toolkit.errors import DataError

_FLUSH_TOKENS = 1 << 20


class GrowingArray:
    """A .npy file whose length is not known in advance: data first, the header's shape at the end."""

    def __init__(self, path: Path, dtype: Any, item: tuple[int, ...] = ()) -> None:
        self.dtype, self.item = np.dtype(dtype), item
        self.size = 0
        self._waiting: list[NDArray[Any]] = []
        self._num_waiting = 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Add `values` at the end."""
        self._waiting.append(values)
        self._num_waiting += len(values)
        self.size += len(values)
        if self._num_waiting >= _FLUSH_TOKENS:
            self._flush()

    def close(self) -> None:
        """Write what is waiting and the final header."""
        self._flush()
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write(np.concatenate(self._waiting).astype(self.dtype, copy=False).tobytes())
        self._waiting, self._num_waiting = [], 0

    def _write_header(self) -> None:
        # numpy pads the header so that a longer shape still fits in the same bytes (GROWTH_AXIS_MAX_DIGITS).
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.size, *self.item),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class ColumnWriter:
    """Writes examples into `directory`, without the arrays `left_out`; all must have the same columns."""

    def __init__(self, directory: Path, left_out: Collection[str] = ()) -> None:
        self.directory, self._left_out = directory, left_out
        self._columns: dict[str, tuple[GrowingArray, GrowingArray]] = {}
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the examples written so far, in hex digits: equal for equal examples in the same order."""
        return self._digest.hexdigest()

    def append(self, example: Example) -> None:
        """Add one example."""
        update_digest(self._digest, example)
        example = {name: values for name, values in example.items() if name not in self._left_out}
        if not self._columns:
            self._columns = {name: self._open(name, values) for name, values in example.items()}
        if set(example) != set(self._columns):
            raise DataError(
                f"an example has the columns {sorted(example)}, the ones before it {sorted(self._columns)}",
                expected="the same columns in every example",
                do="let the task's encode return the same keys for every row",
            )
        for name, (values, ends) in self._columns.items():
            found = example[name]
            if (found.dtype, found.shape[1:]) != (values.dtype, values.item):
                raise TypeError(
                    f"{name} is {found.dtype}{list(found.shape[1:])}, before it was {values.dtype}{list(values.item)}"
                )
            values.append(found)
            ends.append(np.array([values.size]))

    def close(self) -> None:
        """Finish all files."""
        for values, ends in self._columns.values():
            values.close()
            ends.close()
        (self.directory / "columns.json").write_text(json.dumps(sorted(self._columns)))

    def _open(self, name: str, first: NDArray[Any]) -> tuple[GrowingArray, GrowingArray]:
        if not first.ndim:
            raise TypeError(f"{name} has no dimension: an example holds arrays of at least one")
        return (
            GrowingArray(self.directory / f"{name}.npy", first.dtype, first.shape[1:]),
            GrowingArray(self.directory / f"{name}.ends.npy", np.int64),
        )


def update_digest(digest: Any, example: Example) -> None:
    """Add the arrays of `example`, with their names, types and shapes, to a hash of hashlib."""
    for name in sorted(example):
        values = np.ascontiguousarray(example[name])
        digest.update(f"{name}:{values.dtype.str}{list(values.shape)}:".encode())
        digest.update(values.tobytes())


class ColumnReader:
    """Examples by index from the memory-mapped files of a `ColumnWriter`."""

    def __init__(self, directory: Path) -> None:
        names = json.loads((directory / "columns.json").read_text())
        self._values = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in names}
        self._ends = {name: np.load(directory / f"{name}.ends.npy") for name in names}

    def __len__(self) -> int:
        return len(next(iter(self._ends.values()), ()))

    def __getitem__(self, index: int) -> Example:
        # Copies: the maps are read-only and a tensor over them would be, too.
        return {name: np.array(values[self._slice(name, index)]) for name, values in self._values.items()}

    def _slice(self, name: str, index: int) -> slice:
        ends = self._ends[name]
        return slice(int(ends[index - 1]) if index else 0, int(ends[index]))
