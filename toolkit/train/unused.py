"""One line about the columns of the training data that nothing is done with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice

from toolkit.data.example import Row
from toolkit.data.reading.column_names import unused_columns
from toolkit.errors import DataError, first_few

LOOK_AT = 1000
"""Rows of a stream whose columns are looked at; of prepared data all are."""

WEIGHING = frozenset(
    [
        "attention_mask",
        "assistant_mask",
        "assistant_masks",
        "completion_mask",
        "ignore",
        "is_train",
        "labels",
        "loss",
        "loss_mask",
        "loss_weight",
        "mask",
        "sample_weight",
        "split",
        "train",
        "train_mask",
        "trainable",
        "weight",
        "weights",
    ]
)
"""Columns by which other tools leave a row, or a part of it, out of training. Here all rows count alike."""


def in_the_first_rows(rows: Iterable[Row], columns: Callable[[Row], Collection[str]]) -> tuple[Counter[str], int]:
    """The unused columns of the first LOOK_AT of `rows`, each with the rows it holds something in, and the rows seen."""
    counts: Counter[str] = Counter()
    seen = 0
    for row in islice(rows, LOOK_AT):
        try:
            counts.update(unused_columns(row, columns))
        except DataError:  # said, with its number, when the row is encoded
            break
        seen += 1
    return counts, seen


def unused_remark(field: str, unused: Mapping[str, int], num_rows: int, *, first: bool = False) -> str | None:
    """The line about `unused` columns of `field` in `num_rows` rows, the `first` ones or all; None where there are none."""
    if not unused:
        return None
    names = [
        name if unused[name] == num_rows else f"{name} (in {unused[name]:,} of {num_rows:,} rows)"
        for name in sorted(unused)
    ]
    looked = f", in the first {num_rows:,} rows" if first else ""
    line = f"note: {field} has columns that are not used{looked}: {first_few(names, 12)}"
    if weighing := sorted(name for name in unused if name.casefold() in WEIGHING):
        line += f"; every row counts, and all alike, whatever {' and '.join(weighing)} say{'s' * (len(weighing) == 1)}"
    return line
