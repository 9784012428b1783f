"""Image classification: one class per image."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageClassification

from toolkit.data.example import IGNORED, Example, Row, as_bytes, as_text
from toolkit.data.media.images import check_image, decode_image
from toolkit.data.media.stored import in_column, located_in
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.row_names import RowName
from toolkit.models.without_values import call_without_values
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import ImageClassification, Model
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Loss, Record, Sums, Task
from toolkit.tasks.columns import value_of
from toolkit.tasks.images import augmentation
from toolkit.tasks.images.mixing import mixed
from toolkit.tasks.images.processors import Ranges, load_image_processor, pixels_of, processor_for, side_of
from toolkit.tasks.labels.kinds.one_class import OneClass
from toolkit.tasks.metrics.labels import confusion

PIXELS, ENCODED, NAME = "pixel_values", "image", "image_name"
OTHER, SHARE = "other_labels", "share"
"""Of an image mixed with another: the class of that one, and how much of the image is its own."""
TOP = 5


class ImageClassificationTask(Task):
    """Rows hold, or name, an image, and a class. Pixels are made when a batch is: decoded, and in training augmented."""

    auto_class = AutoModelForImageClassification
    unit = "image"
    transforms = True
    sourced = frozenset({ENCODED, NAME})
    provenance = frozenset({NAME})
    answers = frozenset({"labels", OTHER, SHARE})
    makes_records = True
    tells_at_once = True
    legend = "images as they are stored, with their class; --preview decodes none"

    def __init__(self, options: ImageClassification, processor: Any) -> None:
        super().__init__(options, processor_for(options, processor))
        self.side, self.ranges = side_of(self.processor), Ranges(self.processor)
        self.kind = OneClass(options)
        self.crop = augmentation.Crop(
            options.random_crop,
            self.side,
            options.crop_scale,
            options.crop_ratio,
            options.crop_padding,
            int(getattr(self.processor, "resample", None) or Image.Resampling.BILINEAR),
        )

    @classmethod
    def load_processor(cls, model: Model) -> Any:
        """The checkpoint's image processor; None where it has none."""
        return load_image_processor(model)

    # The rows as a whole

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Find the classes; those of the checkpoint's head where it has one that fits."""
        self.kind.fit(rows, checkpoint, fields, row_name)

    def check(self, rows: Iterable[Row], row_name: RowName) -> None:
        """Raise DataError for held-out rows without labels."""
        self.kind.check(rows, row_name)

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """The classes, what the checkpoint's head becomes, and the size of the images."""
        return [*self.kind.remarks(), f"images: {self.side} x {self.side} pixels"]

    @property
    def new_head(self) -> bool:
        """Whether the output layer starts at random values, whatever the checkpoint has."""
        return self.kind.new_head

    def config_overrides(self) -> dict[str, Any]:
        """The classes, so that the export knows their names."""
        return self.kind.config()

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Raise ModelError for a model that cannot take images of this size."""
        call_without_values(
            self.auto_class,
            config,
            self.one_example(),
            f"images of {self.side} x {self.side} pixels",
            "set task.image_size to what the model takes"
            + (
                f", {size}"
                if isinstance(size := getattr(config, "image_size", None), int) and size != self.side
                else ""
            ),
        )

    def describe(self) -> dict[str, Any]:
        """The columns read, the classes, and which images are refused; nothing that `transform` alone looks at."""
        options = self.options
        read = {name: getattr(options, name) for name in ("image_field", "label_field", "max_pixels")}
        return {"task": options.name, **read, **self.kind.describe()}

    # One row, one image

    def columns(self, row: Row) -> Collection[str]:
        """The image and the class; of a folder of images also the name of the file, which says the class."""
        return (self.options.image_field, self.options.label_field, "file_name")

    def located(self, row: Row, folder: Path | None) -> Row:
        """`row` with the path of its image taken from `folder` on."""
        return located_in(row, self.options.image_field, folder)

    def source(self, row: Row) -> Example:
        """The image as it is stored, its bytes [n], and its name."""
        column = self.options.image_field
        found = in_column(value_of(row, column, "image_field", "an image"), column, "image_field")
        return {ENCODED: found.encoded(), NAME: as_bytes(found.name)}

    def encode(self, row: Row) -> list[Example]:
        """One example: the image as it is stored, and its class."""
        return [{**self.source(row), "labels": self.kind.label(row)}]

    def examine(self, example: Example) -> None:
        """Decode the image once."""
        check_image(example[ENCODED].tobytes(), as_text(example[NAME]), self.options.max_pixels)

    def size(self, example: Example) -> int:
        """One image."""
        return 1

    def targets(self, example: Example) -> int:
        """One class."""
        return 1

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """Every image fits: it is resized."""
        return [example]

    def ignored(self, example: Example) -> Example:
        """The same image without a class."""
        return {**example, "labels": np.full_like(example["labels"], IGNORED)}

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """Pixels [3, S, S]: in training augmented, else as the image processor makes them."""
        content, options = example[ENCODED].tobytes(), self.options
        is_part = is_trained and options.random_crop == "resized"
        # The smallest part still has as many pixels as the model sees.
        least = math.ceil(self.side / math.sqrt(options.crop_scale[0])) if is_part else None
        image = decode_image(content, as_text(example[NAME]), options.max_pixels, at_least=least)
        if not is_trained:
            return {PIXELS: pixels_of(self.processor, image), "labels": example["labels"]}
        if options.random_crop == "none":
            pixels = pixels_of(self.processor, self._flipped_and_coloured(image, random))
        else:
            part = augmentation.crop(image, self.crop, random)
            pixels = self.ranges.of(self._flipped_and_coloured(part, random))
        return {PIXELS: augmentation.erase(pixels, options.random_erasing, random), "labels": example["labels"]}

    def _flipped_and_coloured(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        options = self.options
        image = augmentation.flip(image, options.horizontal_flip, random)
        image = augmentation.recolour(image, options.rand_augment, options.rand_augment_operations, random)
        return augmentation.jitter(image, options.color_jitter, random) if options.color_jitter else image

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with their neighbours."""
        return bool(self.options.mixup_alpha or self.options.cutmix_alpha)

    def mix(self, example: Example, other: Example, random: np.random.Generator) -> Example:
        """`example` with something of the pixels of `other`, its class, and the share that is its own."""
        alphas = self.options.mixup_alpha, self.options.cutmix_alpha
        pixels, share = mixed(example[PIXELS], other[PIXELS], *alphas, random)
        return {**example, PIXELS: pixels, OTHER: other["labels"], SHARE: np.array([share], np.float32)}

    def show(self, example: Example) -> Shown:
        """The size of the image, and its class."""
        width, height = check_image(example[ENCODED].tobytes(), as_text(example[NAME]), self.options.max_pixels)
        label = self.kind.classes[int(example["labels"][0])]
        return Shown(f"{width} x {height} pixels, {len(example[ENCODED]):,} bytes", [(label, True)])

    # A batch

    def stand_in(self, length: int, config: Any) -> Example:
        """An image of the size that the model reads."""
        return {PIXELS: np.zeros((3, self.side, self.side), np.float32), "labels": np.zeros(1, np.int32)}

    def assume(self) -> None:
        """Two classes, as good as any number of them: the head is small."""
        self.kind.fit([{self.options.label_field: number} for number in (0, 1)], None, NO_FIELDS, TRAINED)

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """pixel_values [B, 3, S, S] fp32, labels [B]; of mixed images other_labels [B] and share [B] besides."""
        examples = [sequence[0] for sequence in sequences]
        pixels = torch.from_numpy(np.stack([example[PIXELS] for example in examples]))
        if self.options.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        batch = {PIXELS: pixels, "labels": self.kind.collate([example["labels"] for example in examples])}
        if SHARE in examples[0]:
            batch[OTHER] = self.kind.collate([example[OTHER] for example in examples])
            batch[SHARE] = torch.from_numpy(np.concatenate([example[SHARE] for example in examples]))
        return batch

    def count(self, batch: Batch) -> int:
        """Images with a class (fillers of an evaluation have none)."""
        return int((batch["labels"] != IGNORED).sum())

    def one_example(self) -> Batch:
        """pixel_values [1, 3, S, S]."""
        return {PIXELS: torch.zeros(1, 3, self.side, self.side, device="meta")}

    # The model

    def _logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        pixels = batch[PIXELS].to(next(model.parameters()).dtype)
        logits: torch.Tensor = model(pixel_values=pixels).logits
        return logits.float()

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """Cross-entropies; of a mixed image those of both classes, by their shares."""
        logits, smoothing = self._logits(model, batch), self.options.label_smoothing
        if SHARE not in batch:
            return Loss(self.kind.losses(logits, batch["labels"], smoothing))
        own, other = (
            nn.functional.cross_entropy(logits, batch[name], reduction="none", label_smoothing=smoothing)
            for name in ("labels", OTHER)
        )
        share = batch[SHARE]
        return Loss((share * own + (1.0 - share) * other).sum())

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss (never smoothed), images, right answers, and how often the class is among the five most likely."""
        return self._sums(self._logits(model, batch), batch["labels"])

    def _sums(self, logits: torch.Tensor, labels: torch.Tensor) -> Sums:
        likely = logits.topk(min(TOP, logits.shape[-1])).indices
        return {
            "loss": float(self.kind.losses(logits, labels, 0.0)),
            "targets": float((labels != IGNORED).sum()),
            "top5": float((likely == labels.unsqueeze(1)).sum()),
            **self.kind.sums(logits, labels),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per image, accuracy, top-5 accuracy, and that of always answering the most frequent training class."""
        images = max(1.0, sums["targets"])
        found = {"loss": sums["loss"] / images, **self.kind.metrics(sums, images)}
        return {**found, "top5_accuracy": sums["top5"] / images}

    def told(self, model: nn.Module, batch: Batch, examples: Sequence[Example]) -> tuple[Sums, list[Record]]:
        """The sums, and what the model says of each image beside its class."""
        logits = self._logits(model, batch)
        said = map(self.kind.told, logits.cpu())
        records = [
            {"prediction": prediction, "reference": self.kind.meant(example["labels"])}
            for prediction, example in zip(said, examples, strict=True)
        ]
        return self._sums(logits, batch["labels"]), records

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Accuracy, mean F1 and Matthews' correlation."""
        return self.kind.score(records)

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """The confusion matrix."""
        return {"confusion_matrix": confusion(records, self.kind.classes)}
