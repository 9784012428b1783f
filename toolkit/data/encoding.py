"""Raw rows -> the examples kept of them, with the row's number in every error; by one process, or by all ranks together."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from toolkit.data.example import Encode, Example, Kind, Row
from toolkit.data.forms.recognised import Recognised
from toolkit.data.media.stored import Unreadable
from toolkit.data.packing import Counts
from toolkit.data.reading.column_names import ColumnMissing, missing, unused_columns
from toolkit.data.reading.row_names import RowName, named, plain_names
from toolkit.data.tokens import TOKENS
from toolkit.errors import DataError, ToolkitError

COUNT_IN = 1000
"""Rows among which those are counted that share an error."""
MOST_SAID = 3
"""Examples left out whose fault is said."""
AHEAD = 4
"""Rows that each thread may be ahead."""
LEAVE_S = 60.0
"""Longest wait, at the end of a stream, for ranks that do not come to say goodbye."""


@dataclass
class Encoder:
    """Applies a task's `encode`, makes the examples fit `capacity`, leaves out what trains nothing, counts."""

    encode: Encode
    capacity: int
    overlong: str
    name: str = "data.train"
    """The recipe field that the rows come from, for messages."""
    columns: Callable[[Row], Collection[str]] | None = None
    """The columns of a row that `encode` reads; None: nobody asks for those it does not, or that a row lacks."""
    counts: Counts = field(default_factory=Counts)
    unused: Counter[str] = field(default_factory=Counter)
    """The rows in which a column holds something that is not read, by its name; without `columns` nothing is counted."""
    recognised: Callable[[Row], Recognised | None] | None = None
    """The format of a row that `encode` takes; None: nobody asks."""
    forms: Counter[Recognised] = field(default_factory=Counter)
    """The rows of each format; without `recognised` nothing is counted."""
    row_name: RowName | None = None
    """What messages call a row; None: its number and `name`."""
    rows: Iterable[Row] | None = None
    """All rows, which can be read once more: an error that others share says how many, and one about columns which of them
    other rows have; None: it speaks of one."""
    kind: Kind = TOKENS
    """What the examples are."""
    unreadable: str = "error"
    """What becomes of an image or a recording that cannot be used: "error", or "skip"."""
    source: Callable[[Row], Example] | None = None
    """The sourced arrays of the example that a row gives; None: the kind has none."""
    skipped: list[str] = field(default_factory=list)
    """What is said of the first of those that were left out."""
    workers: int = 0
    """Threads that look at images and recordings ahead of `all_examples`."""

    def all_examples(self, rows: Iterable[Row]) -> Iterator[tuple[int, list[Example]]]:
        """(number, examples kept) of each row, in order. Raises DataError that names the row."""
        if not self.workers or not self.kind.sourced:
            for number, row in enumerate(rows, start=1):
                yield number, self.examples(row, number)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="examine") as pool:
            waiting: deque[tuple[int, Row, Future[list[Example]]]] = deque()
            for number, row in enumerate(rows, start=1):
                waiting.append((number, row, pool.submit(self._found, row)))
                if len(waiting) > AHEAD * self.workers:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _next(self, waiting: deque[tuple[int, Row, Future[list[Example]]]]) -> tuple[int, list[Example]]:
        number, row, found = waiting.popleft()
        try:
            return number, self._kept(row, number, found.result)
        except BaseException:
            for _, _, other in waiting:
                other.cancel()
            raise

    def examples(self, row: Row, number: int) -> list[Example]:
        """The examples kept of row `number` (1 is the first). Raises DataError that names the row."""
        return self._kept(row, number, partial(self._found, row))

    def _found(self, row: Row) -> list[Example]:
        return [example for example in self.encode(row) if self.kind.size(example)]

    def _kept(self, row: Row, number: int, find: Callable[[], list[Example]]) -> list[Example]:
        try:
            found = find()
            kept = [piece for example in found for piece in self._fitted(example)]
        except Unreadable as error:
            if self.unreadable != "skip":
                raise named(error, self._called(number)) from None
            self.counts.unreadable += 1
            if len(self.skipped) < MOST_SAID:
                self.skipped.append(f"{self._called(number)}: {error.what}")
            return []
        except ColumnMissing as error:
            absent = self._absent(row)
            lacking = missing(absent, row, self._share(number, error)) if absent else error
            raise named(lacking, self._called(number)) from None
        except DataError as error:
            what = error.what + self._share(number, error)
            raise named(DataError(what, expected=error.expected, do=error.do), self._called(number)) from None
        except Exception as error:
            error.add_note(f"while encoding {self._called(number)}")
            raise
        if self.columns is not None:
            self.unused.update(unused_columns(row, self.columns))
        if self.recognised is not None and (form := self.recognised(row)) is not None:
            self.forms[form] += 1
        self.counts.empty += not found
        self.counts.kept += len(kept)
        return kept

    def _absent(self, row: Row) -> list[str]:
        """The columns that are read in the first row which can be encoded, and that `row` does not have."""
        for other in itertools.islice(self.rows or (), COUNT_IN if self.columns else 0):
            with contextlib.suppress(Exception):  # another fault of another row: it is said when it is the first
                self.encode(other)
                read = self.columns(other) if self.columns else ()
                return [name for name in other if name in read and name not in row]
        return []

    def _share(self, number: int, error: DataError) -> str:
        """In how many rows the same is wrong as in row `number`; nothing where it is one, or it is not known."""
        if self.rows is None or number > COUNT_IN:
            return ""
        looked, count, rows = 0, 0, iter(self.rows)
        for looked, row in enumerate(itertools.islice(rows, COUNT_IN), start=1):  # noqa: B007
            try:
                self.encode(row)
            except type(error) as other:
                count += type(error) is not DataError or other.what == error.what
            except Exception:
                # Another fault of another row: it is said when it is the first.
                continue
        first = "" if next(rows, None) is None else "the first "
        return f" (there, and in {count:,} of {first}{looked:,} rows)" if count > 1 else ""

    def _called(self, number: int) -> str:
        return (self.row_name or plain_names(self.name))(number)

    def _fitted(self, example: Example) -> list[Example]:
        """What of `example` fits and has something to learn; counts what became of it."""
        cut = self.counts.truncated
        fitted = self.kind.fitted(example, self.capacity, self.overlong, self.counts)
        kept = [piece for piece in fitted if self.kind.targets(piece)]
        if len(kept) == len(fitted):
            return kept
        if self.counts.truncated > cut and self.kind.targets(example):
            self.counts.truncated -= 1
            self.counts.cut_off += 1
        else:
            self.counts.truncated = cut
            self.counts.masked += len(fitted) - len(kept)
        return kept

    def check(self, num_rows: int) -> None:
        """Raise DataError when `num_rows` rows left no example to train on."""
        counts = self.counts
        if counts.kept:
            return
        if counts.masked or counts.cut_off:
            is_cut = counts.cut_off >= counts.masked
            raise DataError(
                f"no token of the {num_rows:,} rows of {self.name} carries loss ({counts.describe()})",
                expected=f"examples with tokens to learn within the first {self.capacity:,}, batch.sequence_length"
                if is_cut
                else 'answers to learn: those with "weight": 0 are only context',
                do="raise batch.sequence_length: the answers begin later"
                if is_cut
                else 'take "weight": 0 from the answers to learn; if none has it, look at the {% generation %} blocks of the '
                "tokenizer's chat template",
            )
        raise DataError(
            f"none of the {num_rows:,} rows of {self.name} gave an example ({counts.describe() or 'no row at all'})",
            expected="text in the rows"
            + (f", and examples of at most {self.capacity:,} tokens" if counts.dropped else ""),
            do="check the columns that the task reads" + (", or raise batch.sequence_length" if counts.dropped else ""),
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
        mine = replace(self._encoder, counts=Counts(), unused=Counter(), forms=Counter(), skipped=[])
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
