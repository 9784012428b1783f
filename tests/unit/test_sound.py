"""Recordings: decoded, mixed to one channel, resampled; and what is said of those that cannot be used."""

from __future__ import annotations

import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.speech import RATE, encoded, tone
from toolkit.data.media.sound import Extent, as_wave, check_sound, decode_sound, extent_of
from toolkit.data.media.stored import Unreadable
from toolkit.errors import DataError

SOUND = tone("abc")
FLAC_LENGTH = (1 << 36) - 1
"""The bits of a FLAC header in which its samples stand."""


def flac_that_declares(samples: int) -> bytes:
    content = bytearray(encoded(SOUND, kind="FLAC"))
    stated = int.from_bytes(content[18:26], "big")
    content[18:26] = ((stated & ~FLAC_LENGTH) | samples).to_bytes(8, "big")
    return bytes(content)


def wave_that_declares(data_bytes: int) -> bytes:
    content = bytearray(encoded(SOUND))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", data_bytes)
    return bytes(content)


@pytest.mark.parametrize(("kind", "subtype", "near"), [
    ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 0.0), ("WAV", "PCM_U8", 1e-2), ("WAV", "ULAW", 0.05),
    ("FLAC", None, 1e-4), ("AIFF", None, 1e-4), ("OGG", "VORBIS", 0.2), ("MP3", None, 0.2),
])  # fmt: skip
def test_formats(kind: str, subtype: str | None, near: float) -> None:
    content = encoded(SOUND, kind=kind, subtype=subtype)
    assert extent_of(content, "x") == Extent(len(SOUND), RATE)
    check_sound(content, "x", 30.0)
    found = decode_sound(content, "x", RATE, 30.0)
    assert found.dtype == np.float32 and found.shape == SOUND.shape
    assert np.abs(found - SOUND).max() <= near


def test_channels_are_averaged() -> None:
    both = np.stack([SOUND, np.zeros_like(SOUND)], axis=1)
    found = decode_sound(encoded(both, subtype="FLOAT"), "x", RATE, 30.0)
    assert found == pytest.approx(SOUND / 2, abs=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_to_the_rate_of_the_model(rate: int) -> None:
    """A sine keeps its frequency and its height; the length is what the extent says."""
    times = np.arange(rate) / rate
    content = encoded((0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32), rate, subtype="FLOAT")
    found = decode_sound(content, "x", RATE, 30.0)
    assert len(found) == extent_of(content, "x").at(RATE) == RATE
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert np.abs(found - wanted)[200:-200].max() < 1e-3


@pytest.mark.parametrize(("content", "what"), [
    (b"", "x.wav is empty (0 bytes)"),
    (b"hello " * 50, "x.wav is in no format that libsndfile knows"),
    (encoded(SOUND[:0]), "x.wav holds no sound (0 samples)"),
    (encoded(SOUND)[:2000], "x.wav is cut off: it holds 1,956 of the 5,760 bytes of sound that it declares"),
    (encoded(SOUND, kind="FLAC")[:2000], "x.wav cannot be decoded: flac decoder lost sync"),
    (encoded(np.where(np.arange(len(SOUND)) == 9, np.nan, SOUND), subtype="FLOAT"), "x.wav holds samples that are no numbers (NaN or infinite)"),
    (flac_that_declares(0), "x.wav does not say how long it is"),
    (flac_that_declares(2 * len(SOUND)), "x.wav cannot be decoded: Internal psf_fseek() failed"),
])  # fmt: skip
def test_what_cannot_be_used_says_why(content: bytes, what: str) -> None:
    for look in (lambda: check_sound(content, "x.wav", 30.0), lambda: decode_sound(content, "x.wav", RATE, 30.0)):
        with pytest.raises(Unreadable) as caught:
            look()
        assert caught.value.what == what
        assert "data.unreadable='skip'" in caught.value.do


def test_a_recording_that_ends_early_is_cut_off() -> None:
    whole = encoded(np.tile(SOUND, 20), kind="MP3")
    with pytest.raises(Unreadable, match=r"x is cut off: it ends after [\d,]+ of 57,600 samples"):
        check_sound(whole[: len(whole) // 2], "x", 30.0)


def test_a_header_that_was_never_corrected_is_right() -> None:
    """As programs write it that cannot go back to the beginning of what they write."""
    assert len(decode_sound(wave_that_declares(0xFFFFFFFF), "x", RATE, 30.0)) == len(SOUND)


def test_a_header_of_hours_costs_no_memory() -> None:
    content = flac_that_declares(5 * 3600 * RATE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert extent_of(content, "x").seconds == 5 * 3600
    check_sound(content, "x", 30.0)  # what is to become of it, data.overlong says
    with pytest.raises(Unreadable, match=r"x lasts 18,000\.0 s\n  expected: at most 30 s"):
        decode_sound(content, "x", RATE, 30.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB; all of it would be 1.1 GB"


def test_samples_of_a_row() -> None:
    found = decode_sound(as_wave(SOUND.tolist(), RATE, "x"), "x", RATE, 30.0)
    assert (found == SOUND).all()
    assert extent_of(as_wave(SOUND, 8000, "x"), "x") == Extent(len(SOUND), 8000)


@pytest.mark.parametrize(("samples", "rate", "what"), [
    ([0.5], 0, "x has sampling_rate=0"),
    ([0.5], None, "x has sampling_rate=None"),
    ([0.5], "16000", "x has sampling_rate='16000'"),
    ([0.5], 1e4, "x has sampling_rate=10000.0"),
    ([], RATE, "x has an array that is no list of numbers: []"),
    ([[0.5], [0.5]], RATE, "x has an array that is no list of numbers: [[0.5], [0.5]]"),
    ([[0.5], []], RATE, "x has an array that is no list of numbers: [[0.5], []]"),
    ("abc", RATE, "x has an array that is no list of numbers: 'abc'"),
    (None, RATE, "x has an array that is no list of numbers: None"),
    ([1, -32768], RATE, "x has samples up to 32,768"),
])  # fmt: skip
def test_samples_that_are_none(samples: Any, rate: Any, what: str) -> None:
    with pytest.raises(DataError) as caught:
        as_wave(samples, rate, "x")
    assert caught.value.what == what and not isinstance(caught.value, Unreadable)


def test_not_a_number_in_a_row_is_found_when_it_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no numbers"):
        check_sound(as_wave([0.5, float("nan")], RATE, "x"), "x", 1.0)
