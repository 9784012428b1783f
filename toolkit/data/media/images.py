"""Encoded images -> pixels, by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    return _upright(image, size)


def size_of(content: bytes, name: str, most_pixels: int) -> tuple[int, int]:
    """Width and height, by what the file says of itself."""
    with _opened(content, name, most_pixels) as image:
        return _upright(image, image.size)


def decode_image(content: bytes, name: str, most_pixels: int, *, at_least: int | None = None) -> Image.Image:
    """The image in RGB, upright. Raises as `check_image`.

    Grey, palettes and 16 bits are converted, what is transparent lies on white. `at_least`: a JPEG may be decoded at 1/2,
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
    if image.mode.startswith(("I;16", "I")):
        # 16 bits of grey; Pillow's own conversion would cut off what is above 255.
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        layers = image.convert("RGBA")
        ground = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(ground, layers).convert("RGB")
    return image.convert("RGB")


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
