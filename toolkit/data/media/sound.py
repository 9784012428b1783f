"""Encoded recordings -> samples: decoded by libsndfile (soundfile), in one channel, resampled by soxr.

A recording is decoded piece by piece and never further than its reader asks for, so that no header, however wrong, costs memory.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from toolkit.data.media.stored import unreadable
from toolkit.errors import DataError

EXPECTED = "a recording that libsndfile reads: WAV, FLAC, Ogg, MP3 and others"
Samples = NDArray[np.float32]
PIECE = 1 << 18
"""Numbers that are decoded at once, of all channels."""
UNKNOWN = 1 << 60
"""Frames, or more, of a stream whose header leaves its length open: libsndfile cannot find its end."""
OPEN_ENDED = 0x7FFF0000
"""Bytes, or more, that a WAV file declares whose writer could not go back and correct its header."""
SHORTFALL = 0.02
"""Share by which a recording may be shorter than declared: of MP3 the length is estimated."""
LOUDEST = 8.0
"""Samples lie between -1 and 1; encoders overshoot a little. What is above this is on another scale."""
HIGHEST_RATE = 1_000_000
_SHORT_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Extent:
    """How much sound a recording holds, by its header."""

    frames: int
    """Samples of one channel."""
    rate: int
    """Samples per second."""

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.frames / self.rate

    def at(self, rate: int) -> int:
        """Samples once it is resampled to `rate`."""
        return int(self.frames * rate / self.rate + 0.5)


def extent_of(content: bytes, name: str) -> Extent:
    """How long the recording is, by its header. Raises Unreadable for one that is none, is empty, or does not say."""
    with _opened(content, name) as file:
        rate, frames = file.samplerate, file.frames
    if not frames:
        raise unreadable(name, "holds no sound (0 samples)", EXPECTED)
    if frames >= UNKNOWN:
        raise unreadable(name, "does not say how long it is", "a file whose header does, as one that is written whole")
    return Extent(frames, rate)


def check_sound(content: bytes, name: str, most_seconds: float) -> None:
    """Decode a recording once. Raises Unreadable for one that cannot be decoded to its end, or holds what is no number.

    Of one that lasts longer than `most_seconds` only the header is read.
    """
    extent = extent_of(content, name)
    if extent.seconds <= most_seconds:
        _decoded(content, name, most_seconds)


def decode_sound(content: bytes, name: str, rate: int, most_seconds: float) -> Samples:
    """The samples at `rate` per second, the mean of all channels. Raises as `check_sound`, and for a longer recording."""
    extent = extent_of(content, name)
    if extent.seconds > most_seconds:
        raise unreadable(name, f"lasts {extent.seconds:,.1f} s", f"at most {most_seconds:g} s")
    samples = _decoded(content, name, most_seconds)
    return samples if extent.rate == rate else np.asarray(soxr.resample(samples, extent.rate, rate), np.float32)


def as_wave(samples: Any, rate: Any, where: str) -> bytes:
    """A recording that a row holds as numbers, as a WAV file. Raises DataError for what is none."""
    if not isinstance(rate, int | np.integer) or isinstance(rate, bool) or not 0 < rate <= HIGHEST_RATE:
        raise DataError(
            f"{where} has sampling_rate={rate!r:.40}",
            expected="samples per second, such as 16000",
            do="write the rate that the samples were recorded at",
        )
    try:
        found = np.asarray(samples)
        is_list = found.ndim == 1 and len(found) > 0 and found.dtype.kind in "iuf"
    except (TypeError, ValueError):
        is_list = False
    if not is_list:
        raise DataError(
            f"{where} has an array that is no list of numbers: {samples!r:.60}",
            expected="the samples of one channel, numbers from -1 to 1",
            do="write them so: of several channels their mean",
        )
    loudest = float(np.max(np.abs(found.astype(np.float64)), initial=0.0))
    if np.isfinite(loudest) and loudest > LOUDEST:
        raise DataError(
            f"{where} has samples up to {loudest:,.0f}",
            expected="numbers from -1 to 1",
            do="divide them by the largest there can be: 32768 of 16-bit samples",
        )
    file = io.BytesIO()
    soundfile.write(file, found.astype(np.float32), int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()


def _decoded(content: bytes, name: str, most_seconds: float) -> Samples:
    with _opened(content, name) as file:
        declared, most = file.frames, int(most_seconds * file.samplerate) + 2
        pieces = list(_pieces(file, most))
        cut = _SHORT_DATA.search(file.extra_info)
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if cut is not None and int(cut[2]) < int(cut[1]) < OPEN_ENDED:
        why = f"is cut off: it holds {int(cut[2]):,} of the {int(cut[1]):,} bytes of sound that it declares"
        raise unreadable(name, why, EXPECTED)
    if not len(samples) or len(samples) < (1 - SHORTFALL) * min(declared, most):
        raise unreadable(name, f"is cut off: it ends after {len(samples):,} of {declared:,} samples", EXPECTED)
    if not np.isfinite(samples).all():
        raise unreadable(name, "holds samples that are no numbers (NaN or infinite)", EXPECTED)
    return samples


def _pieces(file: soundfile.SoundFile, most: int) -> Iterator[Samples]:
    """The mean of all channels, piece by piece, until the end or until `most` frames."""
    size = max(1, PIECE // file.channels)
    while most > 0:
        piece = file.read(min(size, most), dtype="float32", always_2d=True)
        if not len(piece):
            return
        most -= len(piece)
        yield piece.mean(axis=1) if piece.shape[1] > 1 else piece[:, 0]


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[soundfile.SoundFile]:
    if not content:
        raise unreadable(name, "is empty (0 bytes)", EXPECTED)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            yield file
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        why = " ".join(str(getattr(error, "error_string", error)).removeprefix("Error : ").split())[:120].rstrip(".")
        why = "is in no format that libsndfile knows" if "not recognised" in why else f"cannot be decoded: {why}"
        raise unreadable(name, why, EXPECTED) from None
