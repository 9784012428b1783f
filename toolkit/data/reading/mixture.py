"""The rows of one field of the recipe: of one source, or of several with weights."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.example import Row
from toolkit.data.reading.content import combined
from toolkit.data.reading.dataset_types import is_table_of_datasets
from toolkit.data.reading.described import described_rows
from toolkit.data.reading.row_names import RowName, row_names
from toolkit.data.reading.weighted import weighted
from toolkit.data.sets.catalog import resolve
from toolkit.errors import DataError

if TYPE_CHECKING:
    from toolkit.data.reading.sources import Rows, Source


@dataclass(frozen=True)
class Part:
    """One source of a mixture."""

    location: str
    weight: float
    """Passes through it in an epoch."""
    source: Source


@dataclass(frozen=True)
class Mixture:
    """The sources of one field, in the order in which it names them."""

    parts: tuple[Part, ...]

    @property
    def rows(self) -> Rows | Chained:
        """All rows, each once; of several sources as these describe them."""
        sources = [part.source.rows for part in self.parts]
        return sources[0] if len(sources) == 1 else Chained(sources)

    @property
    def weights(self) -> tuple[float, ...]:
        """How often an epoch passes through each source."""
        return tuple(part.weight for part in self.parts)

    @property
    def is_plain(self) -> bool:
        """Whether this is one source, once in an epoch."""
        return self.weights == (1.0,)

    @property
    def content(self) -> str:
        """Digest of what decides the rows and how often each comes."""
        if self.is_plain:
            return self.parts[0].source.content
        return combined(*((part.source.content, part.weight) for part in self.parts))

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files read."""
        return tuple(itertools.chain.from_iterable(part.source.files for part in self.parts))

    def row_name(self, field: str) -> RowName:
        """What messages call the rows, in the order of `rows`."""
        if len(self.parts) == 1:
            return row_names(self.parts[0].source, field)
        names = [self.part_row_name(part, field) for part in self.parts]
        starts = _starts([part.source.rows for part in self.parts])

        def name(number: int) -> str:
            index = bisect_right(starts, number - 1) - 1
            return names[index](number - starts[index])

        return name

    def part_row_name(self, part: Part, field: str) -> RowName:
        """What messages call the rows of one source: by its own numbers, and its name where no file says it."""
        is_told = len(self.parts) == 1 or len(part.source.files) == 1
        return row_names(part.source, field if is_told else f"{field}, {part.location!r}")


class Chained:
    """The rows of several data sets one after the other, described by their own, since their columns may differ."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts, self._starts = parts, _starts(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(map(described_rows, self.parts))

    def __getitem__(self, place: int) -> Row:
        if not 0 <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        index = bisect_right(self._starts, place) - 1
        start = place - self._starts[index]
        return next(iter(described_rows(self.parts[index].select([start]))))


def _starts(parts: Sequence[Any]) -> list[int]:
    """How many rows come before each of `parts`."""
    return [0, *itertools.accumulate(len(part) for part in parts[:-1])]


def open_mixture(text: str, field: str, open_one: Callable[[str], Source], *, streaming: bool = False) -> Mixture:
    """The sources that `text`, the value of `field`, names, each opened by `open_one`.

    Raises DataError, besides what `open_one` raises, for several sources as a stream, and for a file in two of them.
    """
    found = weighted(text, field)
    if streaming and (len(found) > 1 or found[0].weight != 1.0):
        raise DataError(
            f"{field}={text!r} with data.streaming=True",
            expected="one source without a weight: the length of a stream, of which a weight is a share, is not known",
            do="set data.streaming=False, or name one source",
        )
    parts = tuple(Part(part.location, part.weight, open_one(resolve(part.location))) for part in found)
    owner: dict[Path, str] = {}
    for part in parts:
        for path in part.source.files:
            other = owner.setdefault(path.resolve(), part.location)
            if other != part.location:
                raise DataError(
                    f"{field}: {other!r} and {part.location!r} both read {str(path)!r}",
                    expected="each file in one source",
                    do="name the files of one of them with a pattern that leaves it out, or give it the sum of the weights",
                )
    return Mixture(parts)


def some_rows(rows: Any, count: int) -> Iterator[Row]:
    """The first `count` rows, of several sources those of each."""
    if isinstance(rows, Chained):
        for part in rows.parts:
            yield from itertools.islice(described_rows(part), count)
    else:
        yield from itertools.islice(rows, count)


def is_table(rows: Any) -> bool:
    """Whether the rows have a length and can be had by number, unlike those of a stream."""
    return isinstance(rows, Chained) or is_table_of_datasets(rows)
