"""Encoded images -> pixels, by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, ImageOps

from toolkit.data.media.stored import unreadable

EXPECTED = "an image that Pillow reads"
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError, Image.DecompressionBombError)
"""What Pillow's readers raise for files that are none, or damaged."""
CHECKED_AT = 8
"""JPEG is decoded at this fraction of its size where it is only looked at: all of the file is read, in less time."""

ImageFile.LOAD_TRUNCATED_IMAGES = False


def check_image(content: bytes, name: str, most_pixels: int) -> tuple[int, int]:
    """Width and height of an image that can be decoded. Raises Unreadable for another, or one of more than `most_pixels`.

    No image is decoded before its size is known, so memory is bounded by `most_pixels`.
    """
    with _opened(content, name, most_pixels) as image:
        size = image.size
        if image.format == "JPEG":
            image.draft("RGB", (max(1, size[0] // CHECKED_AT), max(1, size[1] // CHECKED_AT)))
        image.load()
        if image.mode in ("I", "F"):
            _of_more_bits(image)
        return _upright(image, size)


def size_of(content: bytes, name: str, most_pixels: int) -> tuple[int, int]:
    """Width and height, by what the file says of itself."""
    with _opened(content, name, most_pixels) as image:
        return _upright(image, image.size)


def decode_image(content: bytes, name: str, most_pixels: int, *, at_least: int | None = None) -> Image.Image:
    """The image in RGB, upright. Raises as `check_image`.

    Grey, palettes and more bits are converted, transparency is dropped as transformers drops it. `at_least`: a JPEG may be decoded at 1/2,
    1/4 or 1/8 of its size as long as neither side becomes shorter.
    """
    with _opened(content, name, most_pixels) as image:
        if at_least is not None and image.format == "JPEG":
            image.draft("RGB", (at_least, at_least))
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _of_more_bits(image)
    return image.convert("RGB")


def _of_more_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, which Pillow would cut off above 255: scaled from the range that its mode or its values say.

    Raises ValueError for values of which none can be told.
    """
    values = np.asarray(image, np.float64)
    least, largest = float(values.min()), float(values.max())
    if not np.isfinite(values).all() or least < 0 or largest > 65535:
        raise ValueError(f"its grey values go from {least:g} to {largest:g}, of which 8 bits cannot be made")
    if image.mode.startswith("I;16") or largest > 255:
        values = values / 256
    elif image.mode == "F" and largest <= 1.0:
        values = values * 255
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _upright(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    orientation = image.getexif().get(0x0112, 1)
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size


@contextmanager
def _opened(content: bytes, name: str, most_pixels: int) -> Iterator[Image.Image]:
    if not content:
        raise unreadable(name, "is empty (0 bytes)", EXPECTED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about bombs, which the limit is for, and about metadata
            image = Image.open(io.BytesIO(content))
        width, height = image.size
        if width * height > most_pixels:
            raise unreadable(
                name,
                f"has {width} x {height} pixels, {width * height / 1e6:.0f} million",
                f"at most {most_pixels / 1e6:g} million, task.max_pixels",
            )
        with image:
            yield image
    except BROKEN as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        why = "is in no format that Pillow knows" if "cannot identify" in why else f"cannot be decoded: {why}"
        raise unreadable(name, why, EXPECTED) from None
