"""The image processor of a run: a checkpoint's own, changed where the recipe says so, or a new one. Pillow does the work.

Evaluation sees what it makes of an image, and the export has it: predictions are the same in transformers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from toolkit.errors import ModelError, RecipeError
from toolkit.models.loading import ProcessorFiles
from toolkit.recipe import ImageClassification, Model

FILES = ("preprocessor_config.json", "processor_config.json")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIDE = 224
CENTER = 0.875
PROBE = (96, 64)
"""Width and height of the image by which a processor tells what it makes of one."""


def load_image_processor(model: Model) -> Any | None:
    """The image processor of the recipe's checkpoint; None where it has none. Raises ModelError for one that cannot be read."""
    if model.tokenizer is None and model.path is None:
        return None
    files = ProcessorFiles.of(model)
    if not any((Path(files.folder) / file).is_file() for file in FILES):
        return None
    with files.reading("image processor"):
        return AutoImageProcessor.from_pretrained(files.folder, backend="pil")


def processor_for(options: ImageClassification, found: Any | None) -> Any:
    """`found` with what `options` say instead; a new one where there is none. Raises RecipeError for what it cannot do."""
    if found is None:
        return ConvNextImageProcessorPil(
            size={"shortest_edge": options.image_size or SIDE},
            crop_pct=options.center_crop or CENTER,
            image_mean=list(options.image_mean or IMAGENET_MEAN),
            image_std=list(options.image_std or IMAGENET_STD),
        )
    processor = copy.deepcopy(found)
    if options.image_mean is not None:
        processor.image_mean = list(options.image_mean)
    if options.image_std is not None:
        processor.image_std = list(options.image_std)
    if options.center_crop is not None:
        if not hasattr(processor, "crop_pct"):
            raise RecipeError(
                f"task.center_crop={options.center_crop} with {type(processor).__name__}, the checkpoint's image processor",
                expected="None: this one crops in a way of its own",
                do="remove task.center_crop",
            )
        processor.crop_pct = options.center_crop
    if options.image_size is not None:
        _resize(processor, options.image_size / side_of(processor))
    return processor


def _resize(processor: Any, factor: float) -> None:
    """Let `processor` make images that are `factor` times as large."""
    for name in ("size", "crop_size"):
        sizes = getattr(processor, name, None)
        if sizes is None:
            continue
        given = {key: value for key, value in dict(sizes).items() if value is not None}
        setattr(processor, name, type(sizes)(**{key: round(value * factor) for key, value in given.items()}))


def side_of(processor: Any) -> int:
    """The side of the squares that `processor` makes. Raises ModelError for one that makes none."""
    _, height, width = pixels_of(processor, Image.new("RGB", PROBE)).shape
    if height != width:
        raise ModelError(
            f"{type(processor).__name__} makes {width} x {height} pixels of an image with {PROBE[0]} x {PROBE[1]}",
            expected="squares: images of a batch have one shape",
            do="set do_center_crop, or size to a height and a width, in preprocessor_config.json",
        )
    return int(height)


def pixels_of(processor: Any, image: Image.Image) -> NDArray[np.float32]:
    """What `processor` makes of `image`: [3, height, width]."""
    found = processor(images=image, return_tensors="np")["pixel_values"][0]
    return np.asarray(found, np.float32)


class Ranges:
    """The range that `processor` gives pixels: what it makes of each value of each channel, looked up instead of computed again."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
        self._values = self._asked(every).reshape(3, 256)
        colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
        # Some exchange channels (MobileViT), which grey does not show.
        self._is_table = np.array_equal(self._looked_up(colours), self._asked(colours))

    def of(self, image: Image.Image) -> NDArray[np.float32]:
        """`image`, which has its size already, as pixels [3, height, width]."""
        return self._looked_up(image) if self._is_table else self._asked(image)

    def _looked_up(self, image: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(image)
        return np.stack([np.take(self._values[channel], pixels[..., channel]) for channel in range(3)])

    def _asked(self, image: Image.Image) -> NDArray[np.float32]:
        found = self._processor(images=image, return_tensors="np", do_resize=False, do_center_crop=False)
        return np.asarray(found["pixel_values"][0], np.float32)
