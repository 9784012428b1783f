"""The rows that a run trains on and those it holds out: two sets, apart from each other or said not to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from toolkit.cache import cache_dir
from toolkit.data.example import Row
from toolkit.data.reading.content import combined
from toolkit.data.reading.mixture import Mixture, open_mixture
from toolkit.data.reading.own_rows import own_source
from toolkit.data.reading.sources import Source, open_source
from toolkit.data.sets.catalog import resolve
from toolkit.errors import DataError, first_few
from toolkit.recipe import Data, Recipe
from toolkit.recipe.tasks.custom import OWN

OwnRows = Callable[[str], Sequence[Row] | None]
"""A split -> the rows of it that the task has; None: it has none."""


def no_rows(split: str) -> None:
    """Of a task without rows."""


def open_rows(recipe: Recipe, say: Callable[[str], None], own: OwnRows = no_rows) -> tuple[Mixture, Mixture | None]:
    """The sources to train on and to measure on; None where nothing is held out. `say` prints one line of remark.

    `own` gives the rows that the task itself has.

    Raises DataError for a source that cannot be read, and for one directory in both places without files to tell apart.
    """
    data = recipe.data
    train = open_mixture(
        data.train,
        "data.train",
        partial(
            _open,
            own,
            split=data.split,
            subset=data.subset,
            streaming=data.streaming,
            max_examples=data.max_examples,
            cache_dir=cache_dir() / "datasets",
        ),
        streaming=data.streaming,
    )
    held_out = None
    if data.evaluation is not None:
        held_out = open_mixture(
            data.evaluation,
            "data.evaluation",
            partial(
                _open,
                own,
                split=data.evaluation_split,
                subset=data.subset,
                cache_dir=cache_dir() / "datasets",
                field="data.evaluation",
            ),
        )
        _check_unweighted(data.evaluation, held_out)
        _check_apart(data, train, held_out, say)
    elif data.evaluation_examples:
        train, held_out = _hold_out(train, data.evaluation_examples, recipe.seed if data.shuffle else None, say)
    for field, mixture in (("data.train", train), ("data.evaluation", held_out)):
        if mixture is not None and (field == "data.train" or data.evaluation is not None):
            for part in mixture.parts:
                _remark(field, part.source, say)
    return train, held_out


def _open(own: OwnRows, location: str, *, split: str, field: str = "data.train", **options: Any) -> Source:
    """The source at `location`, which may be the task itself."""
    rows = own(split) if location == OWN else None
    if rows is None:
        return open_source(location, split=split, field=field, **options)
    return own_source(rows, split, field, options.get("max_examples"))


def _check_unweighted(evaluation: str, held_out: Mixture) -> None:
    if any(weight != 1.0 for weight in held_out.weights):
        raise DataError(
            f"data.evaluation={evaluation!r} has weights",
            expected="sources without them: every held-out row is measured once",
            do="remove the weights",
        )


def _check_apart(data: Data, train: Mixture, held_out: Mixture, say: Callable[[str], None]) -> None:
    both = sorted(str(path) for path in {*_resolved(train)} & {*_resolved(held_out)})
    if not both:
        return
    trained = {Path(resolve(part.location)).resolve() for part in train.parts}
    for directory in (Path(resolve(part.location)) for part in held_out.parts):
        if not directory.is_dir() or data.split == data.evaluation_split:
            continue
        if directory.resolve() in trained:
            cause = f"nothing in their names tells the split {data.split!r} from {data.evaluation_split!r}"
        else:
            cause = f"data.evaluation is a directory that they belong to, for the split {data.evaluation_split!r}"
        raise DataError(
            f"data.train={data.train!r} and data.evaluation={data.evaluation!r} are the same files: "
            f"{first_few(both, 4)}; {cause}",
            expected="different rows to train on and to hold out",
            do="name other files in one of them, or set data.evaluation_examples to split some off instead of "
            "data.evaluation",
        )
    if data.streaming:  # a stream is not known in advance; for prepared data the rows themselves are compared
        say(f"note: data.evaluation reads what data.train reads: {first_few(both, 4)}")


def _resolved(mixture: Mixture) -> list[Path]:
    return [path.resolve() for path in mixture.files]


def _hold_out(mixture: Mixture, count: int, seed: int | None, say: Callable[[str], None]) -> tuple[Mixture, Mixture]:
    """`mixture` without `count` rows, and those: of each source by its share of the rows, whatever its weight."""
    sizes = [len(part.source.rows) for part in mixture.parts]
    counts = _in_proportion(count, sizes)
    if count >= sum(sizes) or any(taken >= size for taken, size in zip(counts, sizes, strict=True)):
        of_each = (
            f", {', '.join(map(str, counts))} of its sources with {', '.join(map(str, sizes))}" if sizes[1:] else ""
        )
        raise DataError(
            f"data.evaluation_examples={count} of {sum(sizes)} rows{of_each}",
            expected="fewer than there are rows",
            do="lower data.evaluation_examples",
        )
    trained, held_out = [], []
    for part, taken in zip(mixture.parts, counts, strict=True):
        if not taken:
            trained.append(part)
            continue
        rest, drawn = _split_off(part.source, taken, seed, say)
        trained.append(replace(part, source=rest))
        held_out.append(replace(part, source=drawn, weight=1.0))
    return Mixture(tuple(trained)), Mixture(tuple(held_out))


def _in_proportion(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` shared out by `sizes`: rounded down, and what is left to the largest remainders, the first of those alike."""
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    first = sorted(range(len(sizes)), key=lambda index: -(count * sizes[index] % total))
    for index in first[: count - sum(shares)]:
        shares[index] += 1
    return shares


def _split_off(source: Source, count: int, seed: int | None, say: Callable[[str], None]) -> tuple[Source, Source]:
    """`source` without `count` rows, and those: drawn by `seed`, or the last ones in order when it is None."""
    total = len(source.rows)
    if seed is None:
        say(f"holding out the last {count:,} of {total:,} rows, in order (data.shuffle=False)")
        parts = source.rows.select(range(total - count)), source.rows.select(range(total - count, total))
        places: list[Callable[[int], int] | None] = [None, partial(add, total - count)]
    else:
        shuffled = source.rows.train_test_split(test_size=count, seed=seed)
        parts = shuffled["train"], shuffled["test"]
        places = [partial(_drawn, part, total, count, seed) for part in ("train", "test")]
    trained, held_out = (
        replace(source, rows=rows, content=combined(source.content, name, count, seed), place=place)
        for name, rows, place in zip(("without", "held out"), parts, places, strict=True)
    )
    return trained, held_out


def _drawn(part: str, total: int, count: int, seed: int, index: int) -> int:
    """Where row `index` of one part of a split stood before it: by the same split of the numbers."""
    numbers = datasets.Dataset.from_dict({"number": np.arange(total)})
    return int(numbers.train_test_split(test_size=count, seed=seed)[part][index]["number"])


def _remark(field: str, source: Source, say: Callable[[str], None]) -> None:
    """Say what of `source` is not read, and what was read in another way than its form tells."""
    if source.left_out:
        say(
            f"note: {field} reads {first_few([path.name for path in source.files], 4)}; left out, since it is a saved data "
            "set of its own, an archive, or its name says no split while others do: "
            f"{first_few([path.name for path in source.left_out], 4)}"
        )
    if source.unread:
        say(f"note: {field} is read without columns of a type that rows cannot hold: {first_few(source.unread, 4)}")
    for remark in source.remarks:
        say(f"note: {field}: {remark}")
