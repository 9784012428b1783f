"""Micro-batches of conversations with images: their rows, their positions, their pixels, and an image where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from toolkit.data.example import IGNORED, Array, Example
from toolkit.models.decoding import left_padded
from toolkit.models.grid_positions import AXES, GridPositions
from toolkit.tasks.base import Batch
from toolkit.tasks.packed_rows import Document, next_tokens, pack_rows
from toolkit.tasks.vision_language.pixels import ImageReader, joined

SPANS = "image_spans"
"""Array of an example: first token of each image and the one after its last, [N, 2]."""
PLACES = "grid_positions"
"""Array of an example that is ready for a batch: three positions of each token, [T, 3], where the model takes them."""
PIXELS = "pixels:"
"""Before the names of the arrays of an example that the model takes beside its tokens."""
TYPES = "mm_token_type_ids"
"""Name of the models' input that says which tokens are an image's."""


class ImageBatches:
    """Makes micro-batches. Each has an image, so that every rank calls the vision tower equally often: under ZeRO-3 that
    call gathers weights from all ranks, and below it gradients are summed over ranks that all have them."""

    def __init__(self, tokenizer: Any, reader: ImageReader) -> None:
        self.tokenizer, self.reader = tokenizer, reader
        self.grid: GridPositions | None = None

    def ready(self, example: Example, arrays: Example) -> Example:
        """`example` with what the model takes of its images, and the positions of its tokens."""
        found = {**example, **{PIXELS + name: value for name, value in arrays.items()}}
        if self.grid is not None:
            ids = example["input_ids"]
            found[PLACES] = self.grid.positions(ids, self.is_image(ids), arrays).T
        return found

    def is_image(self, ids: Array) -> Array:
        """Which of the tokens `ids` are those of an image."""
        found: Array = ids == self.reader.processor.image_token_id
        return found

    def packed(self, sequences: Sequence[Sequence[Example]]) -> Batch:
        """As `toolkit.tasks.packed_rows.pack_rows`, with the images of all rows, in their order, and three positions more.

        Where none has an image, a blank one stands behind the shortest row: a document of its own, which nothing else sees
        and in which nothing is learned.
        """
        rows = [list(sequence) for sequence in sequences]
        if not any(map(_has_images, (example for row in rows for example in row))):
            min(rows, key=lambda row: sum(len(example["input_ids"]) for example in row)).append(self._filler)
        batch = pack_rows([list(map(_document, row)) for row in rows], self.tokenizer.pad_token_id)
        if self.grid is not None:
            batch["position_ids"] = _with_grid(batch["position_ids"], rows)
        return {**batch, **_images([example for row in rows for example in row])}

    def beginning(self, example: Example, stop: int) -> Example:
        """The first `stop` tokens of `example`, in which all its images stand."""
        return {**example, "input_ids": example["input_ids"][:stop]}

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """What the model is to go on from, padded on the left; one row more where none of `examples` has an image."""
        rows = [*examples, *([] if any(map(_has_images, examples)) else [self._filler])]
        batch = left_padded([example["input_ids"].tolist() for example in rows], self.tokenizer.pad_token_id or 0)
        if self.grid is not None:
            batch[TYPES] = torch.from_numpy(self.is_image(batch["input_ids"].numpy()).astype(np.int64))
            batch[TYPES] *= batch["attention_mask"]
        return {**batch, **_images(rows)}

    @cached_property
    def _filler(self) -> Example:
        """Nothing but a blank image."""
        arrays, written = self.reader.blank()
        ids = np.array(self.tokenizer(written, add_special_tokens=False)["input_ids"], dtype=np.int32)
        example = {"input_ids": ids, "labels": np.full(len(ids), IGNORED, dtype=np.int32)}
        return self.ready(example, arrays)


def _document(example: Example) -> Document:
    return next_tokens(example["input_ids"], example["labels"])


def _has_images(example: Example) -> bool:
    return any(name.startswith(PIXELS) for name in example)


def _images(examples: Sequence[Example]) -> Batch:
    """What the model takes of the images of `examples`, in their order."""
    found = [
        {name.removeprefix(PIXELS): value for name, value in example.items() if name.startswith(PIXELS)}
        for example in examples
        if _has_images(example)
    ]
    return {name: torch.from_numpy(value) for name, value in joined(found).items()}


def _with_grid(positions: torch.Tensor, rows: Sequence[Sequence[Example]]) -> torch.Tensor:
    """[4, B, T]: positions [B, T], by which attention tells documents apart, and those on the grid."""
    grid = positions.expand(AXES, *positions.shape).clone()
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            places = torch.from_numpy(example[PLACES].T.copy())
            grid[:, number, start : start + places.shape[1]] = places
            start += places.shape[1]
    return torch.cat([positions[None], grid])
