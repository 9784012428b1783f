"""Several stores as one, by the same names: the sources of a mixture, each encoded and kept on its own."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from toolkit.data.example import Example
from toolkit.data.packing import Counts
from toolkit.data.store import Extensible, Store


class JoinedStore(Extensible):
    """The examples of `stores` one after the other; their `weights` are part of what they are."""

    def __init__(self, stores: Sequence[Store], weights: Sequence[float]) -> None:
        self._stores = stores
        self._starts = np.cumsum([0, *map(len, stores)]).tolist()
        self.num_rows = sum(store.num_rows for store in stores)
        self.num_trained_tokens = sum(store.num_trained_tokens for store in stores)
        self.counts = Counts()
        self.counts.add(*(store.counts for store in stores))
        self.unused: Counter[str] = Counter()
        for store in stores:
            self.unused.update(store.unused)
        parts = [f"{store.digest} {weight!r}" for store, weight in zip(stores, weights, strict=True)]
        self.digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.lengths = np.concatenate([store.lengths for store in stores])
        self.digests = np.concatenate([store.digests for store in stores])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        place = bisect_right(self._starts, index) - 1
        return self._stores[place][index - self._starts[place]] | self.beside(index)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.lengths.sum())


AnyStore: TypeAlias = Store | JoinedStore
