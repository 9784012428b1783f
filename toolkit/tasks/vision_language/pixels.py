"""An image as the model reads it: the tokens in its place, by its size alone, and its pixels, by the checkpoint's own processor."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from toolkit.data.example import Array, Example, Ints
from toolkit.data.forms.chat import Places, tokens_of
from toolkit.data.media.images import BROKEN
from toolkit.data.media.stored import Unreadable, unreadable
from toolkit.errors import DataError, ModelError, plural

SIZES = 4096
"""Sizes of images whose tokens are remembered."""
BLANK = (32, 32)
"""Size of the image that stands in where a micro-batch has none."""


@dataclass(frozen=True)
class ReadText:
    """A rendered conversation as tokens."""

    ids: Ints
    places: Places
    """[T, 2]: the characters of the rendered text for which each token stands; none for those of images."""
    spans: NDArray[np.int32]
    """[N, 2]: from the first token of each image to after the last."""


class ImageReader:
    """What the processor makes of images, one at a time. Its methods may be called by several threads at once."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.token: str = processor.image_token
        self.accepted: Collection[str] | None = None
        """Names of the arrays that the model takes; None: it is not known yet, and all are."""
        # Once, here: it asks the tokenizer, which several threads may not do at a time.
        self._settings = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs)["images_kwargs"]
        self._settings.pop("return_tensors", None)
        self._written = lru_cache(SIZES)(self._of_blank)

    def take(self, network: type[Any]) -> None:
        """Make only what the forward pass of `network` takes."""
        self.accepted = frozenset(inspect.signature(network.forward).parameters)

    # Tokens

    def written(self, size: tuple[int, int], name: str) -> str:
        """What stands in the text for an image of `size`, width and height: the processor's own answer for a blank one."""
        try:
            return self._written(size)
        except DataError as error:
            raise Unreadable(f"{name} {error.what.lstrip()}", expected=error.expected, do=error.do) from None

    def _of_blank(self, size: tuple[int, int]) -> str:
        return self._processed(Image.new("RGB", size, "white"), "")[1]

    def read(self, text: str, written: Sequence[str], where: str) -> ReadText:
        """Tokens of `text`, what a chat template wrote, with `written` in the places of its images.

        As `processor.apply_chat_template(..., tokenize=True)` makes them. Raises DataError where the template shows
        another number of images than there are.
        """
        pieces = text.split(self.token)
        if len(pieces) - 1 != len(written):
            raise DataError(
                f"the chat template writes {plural(len(pieces) - 1, 'image token')} {self.token!r} for {where}, which has "
                f"{plural(len(written), 'image')}",
                expected="one for each image: a template of a vision-language model, and no such word in the text itself",
                do=f"take {self.token!r} out of the text, or choose a checkpoint whose chat template shows images where they "
                "stand (some know none in the messages of the system or the assistant)",
            )
        expanded, bounds, owners = _joined(pieces, written, self.token)
        tokenizer = self.processor.tokenizer
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids, places = tokens_of(tokenizer, expanded, add_special_tokens=not begins)
        # Each token belongs to the piece in which it begins; a piece of an image stands for no text.
        piece = np.searchsorted(bounds, places[:, 0], side="right") - 1
        is_real = places[:, 0] < places[:, 1]
        owner = np.where(is_real, owners[piece, 0], -1)
        shifted = np.where((owner < 0)[:, None] & is_real[:, None], places - owners[piece, 1][:, None], 0)
        spans = [np.flatnonzero(owner == number)[[0, -1]] + (0, 1) for number in range(len(written))]
        return ReadText(ids, shifted, np.array(spans, dtype=np.int32).reshape(-1, 2))

    def blank(self) -> tuple[Example, str]:
        """Arrays of an image that shows nothing, and what stands in the text for it."""
        return self._processed(Image.new("RGB", BLANK, "white"), "a blank image")

    # Pixels

    def arrays(self, images: Sequence[tuple[Image.Image, str]]) -> tuple[Example, list[str]]:
        """What the model reads of `images`, each with its name, and what stands in the text for each."""
        found = [self._processed(image, name) for image, name in images]
        return joined([arrays for arrays, _ in found]), [written for _, written in found]

    def _processed(self, image: Image.Image, name: str) -> tuple[Example, str]:
        try:
            made, [written] = self.processor._process_images([image], return_tensors="np", **self._settings)
        except BROKEN as error:
            why = " ".join(str(error).split())[:200]
            raise unreadable(
                name,
                f"has {image.width} x {image.height} pixels, and {type(self.processor.image_processor).__name__} refuses it: {why}",
                "an image of a shape that the checkpoint reads",
            ) from None
        return self._kept(made), written

    def _kept(self, made: BatchFeature) -> Example:
        arrays = {name: np.asarray(value) for name, value in made.items()}
        return {name: value for name, value in arrays.items() if self.accepted is None or name in self.accepted}

    def check(self, written: str, ids: Array, name: str) -> None:
        """Raise ModelError where what is `written` for the pixels of an image is not what its tokens `ids` were made of."""
        needed, there = written.count(self.token), int(np.count_nonzero(ids == self.processor.image_token_id))
        if needed != there:
            raise ModelError(
                f"{name}: {type(self.processor).__name__} writes {plural(needed, 'image token')} for its pixels, and {there:,} "
                "for an image of the size that it had when the data was prepared",
                expected="files that stay as they are, and a number of tokens that follows from an image's size",
                do="start a new run if the file was changed; otherwise this checkpoint's processor cannot be used",
            )


def _joined(pieces: Sequence[str], written: Sequence[str], token: str) -> tuple[str, Array, Array]:
    """The expanded text, where each of its pieces begins, and for each which image it is (-1: text) and how far it moved."""
    expanded, starts, owners, at, before = "", [], [], 0, 0
    for number, piece in enumerate(pieces):
        parts = [(-1, piece, len(piece))] + ([(number, written[number], len(token))] if number < len(written) else [])
        for owner, text, length in parts:
            starts.append(at)
            owners.append((owner, at - before))
            expanded, at, before = expanded + text, at + len(text), before + length
    # Of pieces that begin at the same place the last one has text in it.
    return expanded, np.array(starts, dtype=np.int64), np.array(owners, dtype=np.int64)


def joined(found: Sequence[Example]) -> Example:
    """Arrays of several images one after the other; their other sides are filled up with zeros to the largest.

    As image processors join the images of a batch: LLaVA-NeXT its tiles, Idefics3 its tiles and their mask.
    """
    names = found[0].keys() if found else ()
    return {name: _stacked([arrays[name] for arrays in found]) for name in names}


def _stacked(arrays: Sequence[Array]) -> Array:
    sides = np.array([array.shape[1:] for array in arrays])
    largest = sides.max(axis=0, initial=0)
    if not (sides == largest).all():
        arrays = [
            np.pad(
                array, [(0, 0), *((0, int(most - side)) for most, side in zip(largest, array.shape[1:], strict=True))]
            )
            for array in arrays
        ]
    return np.concatenate(arrays)
