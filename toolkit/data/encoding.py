"""One raw row -> the examples kept of it, with the row's number in every error."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.data.example import Encode, Example, Row, num_targets
from toolkit.data.packing import Counts, fit
from toolkit.errors import DataError


@dataclass
class Encoder:
    """Applies a task's `encode`, makes the examples fit `capacity` tokens, leaves out what trains nothing, counts."""

    encode: Encode
    capacity: int
    overlong: str
    name: str = "data.train"
    """The recipe field that the rows come from, for messages."""
    counts: Counts = field(default_factory=Counts)

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
