"""What all speech tasks share: rows with a recording and its text, and how long both may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from toolkit.data.example import IGNORED, Example, Row, as_bytes, as_text
from toolkit.data.media import stored
from toolkit.data.media.sound import Extent, Samples, as_wave, check_sound, decode_sound, extent_of
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.errors import DataError, plural
from toolkit.models.speech_processor import load_speech_processor
from toolkit.recipe import Model
from toolkit.tasks.base import Batch, Record, Task
from toolkit.tasks.columns import text_of, value_of
from toolkit.tasks.metrics.transcripts import Normalize, compared, transcript_scores

SOUND, NAME = "sound", "sound_name"
"""Arrays that are not kept: the encoded recording, and what messages call it (UTF-8); both bytes."""
EXTENT = "extent"
"""[2]: samples of the recording as it is stored, and how many of them are a second."""
REFERENCE = "reference"
"""The text of the row, UTF-8 bytes."""
ABOUT_RECORDINGS = "a recording in every row"


class SpeechTask(Task):
    """Rows hold, or name, a recording, and a text. Kept are the text's tokens; sound is decoded when a batch is built."""

    transforms = True
    sourced = frozenset((SOUND, NAME))
    provenance = frozenset((NAME,))
    legend = "each recording with its text: what is trained stands marked"
    unit = "frame"
    reads: ClassVar[str]
    """What the feature extractor calls its features."""

    @classmethod
    def load_processor(cls, model: Model) -> Any:
        """A feature extractor and a tokenizer."""
        return load_speech_processor(model, cls.reads)

    @property
    def extractor(self) -> Any:
        """The feature extractor."""
        return self.processor.feature_extractor

    @property
    def rate(self) -> int:
        """Samples per second that the model was made for."""
        rate: int = self.extractor.sampling_rate
        return rate

    # One row, one example

    def located(self, row: Row, folder: Path | None) -> Row:
        """The path of a recording begins in the folder of the file that names it."""
        return stored.located_in(row, self.options.audio_field, folder)

    def source(self, row: Row) -> Example:
        """The encoded recording and its name."""
        column = self.options.audio_field
        value = value_of(row, column, "audio_field", ABOUT_RECORDINGS)
        if isinstance(value, Mapping) and "array" in value and value.get("bytes") is None:
            where = f"task.audio_field={column!r}"
            found = stored.Stored(as_wave(value["array"], value.get("sampling_rate"), where), where)
        else:
            found = stored.in_column(value, column, "audio_field")
        return {SOUND: found.encoded(), NAME: as_bytes(found.name)}

    def encode(self, row: Row) -> list[Example]:
        """One example: labels [N], the extent of the recording [2], its text, and the recording itself."""
        text = text_of(row, self.options.text_field, "text_field")
        labels = np.array(self.tokens(text), np.int32)
        sound = self.source(row)
        found = extent_of(sound[SOUND].tobytes(), as_text(sound[NAME]))
        kept: Example = {
            "labels": labels,
            EXTENT: np.array([found.frames, found.rate], np.int64),
            REFERENCE: as_bytes(text),
        }
        return [{**kept, **sound}]

    def tokens(self, text: str) -> list[int]:
        """What is to be predicted of `text`. Raises DataError for one that the tokenizer cannot write."""
        raise NotImplementedError

    def samples(self, example: Example) -> int:
        """Samples of the recording at the model's own rate."""
        return _extent(example).at(self.rate)

    def targets(self, example: Example) -> int:
        """Tokens of the text."""
        return int(np.count_nonzero(example["labels"] != IGNORED))

    def examine(self, example: Example) -> None:
        """Decode the recording once."""
        check_sound(example[SOUND].tobytes(), self.called(example), self.options.max_duration_s)

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """`example` where its recording and its text are short enough: neither is ever cut."""
        seconds, limit = _extent(example).seconds, self.options.max_duration_s
        if seconds > limit:
            counts.long_recordings += overlong == "drop"
            return left_out(
                overlong, f"{self.called(example)} lasts {seconds:,.1f} s", f"at most {limit:g}, task.max_duration_s"
            )
        length, limit = len(example["labels"]), self.options.target_length
        if length > limit:
            counts.long_targets += overlong == "drop"
            return left_out(overlong, f"the text has {length} tokens", f"at most {limit}, task.target_length")
        return [example]

    def called(self, example: Example) -> str:
        """What messages call the recording."""
        return as_text(example[NAME])

    def sound(self, example: Example) -> Samples:
        """The samples of the recording at the model's own rate."""
        return decode_sound(example[SOUND].tobytes(), self.called(example), self.rate, self.options.max_duration_s)

    def show(self, example: Example) -> Shown:
        """The text, as the tokenizer writes it."""
        labels = example["labels"]
        text = self.tokenizer.decode(labels, skip_special_tokens=False)
        return Shown(f"{_extent(example).seconds:.2f} s, {plural(len(labels), 'token')} trained", [(str(text), True)])

    # A batch

    def count(self, batch: Batch) -> int:
        """Tokens of texts."""
        return int((batch["labels"] != IGNORED).sum())

    # Texts that are written

    @property
    def makes_records(self) -> bool:
        """Whether texts are measured."""
        return bool(self.options.scores)

    @cached_property
    def normalize(self) -> Normalize:
        """What makes texts alike before they are compared."""
        raise NotImplementedError

    def records(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Record]:
        """One for each example: its recording, the text written for it, the row's own, and both as they are compared."""
        return [
            {"audio": self.called(example), **compared(text, self.reference_text(example), self.normalize)}
            for example, text in zip(examples, texts, strict=True)
        ]

    def reference_text(self, example: Example) -> str:
        """What should be written for it."""
        return as_text(example[REFERENCE])

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """What task.scores asks for."""
        return transcript_scores(records, self.options.scores, self.normalize)


def _extent(example: Example) -> Extent:
    return Extent(*example[EXTENT].tolist())


def left_out(overlong: str, what: str, limit: str) -> list[Example]:
    """Nothing, where such examples are dropped. Raises DataError where they are not."""
    if overlong == "drop":
        return []
    raise DataError(
        what,
        expected=f"{limit}, since data.overlong='error'",
        do="raise that limit as far as the model allows, or set data.overlong='drop' to leave such examples out, and count them",
    )
