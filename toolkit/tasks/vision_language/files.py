"""The files of an example's images, as arrays: end to end, with the bytes of each and what messages call it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.data.example import Example, as_bytes, as_text
from toolkit.data.media.stored import Stored

BYTES, LENGTHS, NAMES = "images", "image_lengths", "image_names"
STORED = frozenset({BYTES, LENGTHS, NAMES})


def files_of(images: Sequence[Stored]) -> Example:
    """`images` as the arrays STORED."""
    names = "\0".join(image.name for image in images)
    return {
        BYTES: np.frombuffer(b"".join(image.content for image in images), dtype=np.uint8),
        LENGTHS: np.array([len(image.content) for image in images], dtype=np.int64),
        NAMES: as_bytes(names),
    }


def contents(example: Example) -> list[tuple[bytes, str]]:
    """The bytes and the name of each image."""
    ends = np.cumsum(example[LENGTHS]).tolist()
    names = as_text(example[NAMES]).split("\0")
    starts = [0, *ends[:-1]]
    return [
        (example[BYTES][start:end].tobytes(), name)
        for start, end, name in zip(starts, ends, names, strict=len(ends) > 0)
    ]
