"""Raw rows -> the examples kept of them, with the row's number in every error; by one process, or by all ranks together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from toolkit.data.column_names import unused_columns
from toolkit.data.example import Encode, Example, Row, num_targets
from toolkit.data.packing import Counts, fit
from toolkit.errors import DataError, ToolkitError

LEAVE_S = 60.0
"""Longest wait, at the end of a stream, for ranks that do not come to say goodbye."""


@dataclass
class Encoder:
    """Applies a task's `encode`, makes the examples fit `capacity` tokens, leaves out what trains nothing, counts."""

    encode: Encode
    capacity: int
    overlong: str
    name: str = "data.train"
    """The recipe field that the rows come from, for messages."""
    columns: Callable[[Row], Collection[str]] | None = None
    """The columns of a row that `encode` reads; None: nobody asks for those it does not."""
    counts: Counts = field(default_factory=Counts)
    unused: Counter[str] = field(default_factory=Counter)
    """The rows in which a column holds something that is not read, by its name; without `columns` nothing is counted."""

    def examples(self, row: Row, number: int) -> list[Example]:
        """The examples kept of row `number` (1 is the first). Raises DataError that names the row."""
        try:
            found = [example for example in self.encode(row) if len(example["input_ids"])]
            fitted = [piece for example in found for piece in fit(example, self.capacity, self.overlong, self.counts)]
        except DataError as error:
            what = f"row {number:,} of {self.name}: {error.what}"
            raise DataError(what, expected=error.expected, do=error.do) from None
        except Exception as error:
            error.add_note(f"while encoding row {number:,} of {self.name}")
            raise
        if self.columns is not None:
            self.unused.update(unused_columns(row, self.columns))
        kept = [example for example in fitted if num_targets(example)]
        self.counts.empty += not found
        self.counts.masked += len(fitted) - len(kept)
        self.counts.kept += len(kept)
        return kept

    def check(self, num_rows: int) -> None:
        """Raise DataError when `num_rows` rows left no example to train on."""
        counts = self.counts
        if counts.kept:
            return
        if counts.masked:
            raise DataError(
                f"no token of the {num_rows:,} rows of {self.name} carries loss ({counts.describe()})",
                expected="examples with tokens to learn within the first batch.sequence_length tokens",
                do="raise batch.sequence_length if prompts are cut off, or check task.train_on and the messages' roles",
            )
        raise DataError(
            f"none of the {num_rows:,} rows of {self.name} gave an example ({counts.describe() or 'no row at all'})",
            expected=f"text in the rows, and examples of at most {self.capacity} tokens",
            do="check the columns that the task reads, or raise batch.sequence_length",
        )


class Exchange(Protocol):
    """What ranks need to share work. Called from the thread that encodes, beside the collectives of training."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order. Every rank must call it equally often."""
        ...


class TeamEncoder:
    """Encodes rows that every rank has: each rank a consecutive part, then all parts are exchanged.

    A context manager. Ranks encode ahead of training and may be ended at different places, so each says goodbye when
    it leaves, in the place of a part: whoever waits for that part leaves as well, and none waits for ever.
    """

    def __init__(self, encoder: Encoder, exchange: Exchange | None) -> None:
        self._encoder, self._exchange = encoder, exchange
        self._has_left = exchange is None or exchange.size == 1

    def __enter__(self) -> TeamEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._exchange is None or self._has_left:
            return
        self._has_left = True
        # A rank that fails alone must not wait until the others' collectives have timed out.
        goodbye = threading.Thread(target=self._exchange.gather, args=(None,), name="goodbye", daemon=True)
        goodbye.start()
        goodbye.join(LEAVE_S)

    def examples(self, rows: Sequence[Row], rows_before: int) -> list[Example]:
        """The examples kept of `rows`, in order; `rows_before` is the number of rows read before them.

        Raises DataError on every rank for a row that any of them cannot use.
        """
        exchange = self._exchange
        if exchange is None or exchange.size == 1:
            return _encode(self._encoder, rows, rows_before)
        bounds = [len(rows) * rank // exchange.size for rank in range(exchange.size + 1)]
        start, stop = bounds[exchange.rank], bounds[exchange.rank + 1]
        mine = Encoder(self._encoder.encode, self._encoder.capacity, self._encoder.overlong, self._encoder.name)
        problem: ToolkitError | None = None
        encoded: list[Example] = []
        try:
            encoded = _encode(mine, rows[start:stop], rows_before + start)
        except ToolkitError as error:
            problem = error
        parts = exchange.gather((encoded, mine.counts, problem))
        if None in parts:
            self._has_left = True
            raise DataError(
                f"rank {parts.index(None)} has stopped reading {self._encoder.name}",
                expected="all ranks to read to the end of the run",
                do="look for that rank's own message; continue with --resume auto",
            )
        # The first in rank order is also the first in the order of rows.
        problem = next((part[2] for part in parts if part[2] is not None), None)
        if problem is not None:
            raise problem
        self._encoder.counts.add(*(counts for _, counts, _ in parts))
        return [example for part, _, _ in parts for example in part]


def _encode(encoder: Encoder, rows: Sequence[Row], rows_before: int) -> list[Example]:
    return [example for number, row in enumerate(rows, rows_before + 1) for example in encoder.examples(row, number)]
