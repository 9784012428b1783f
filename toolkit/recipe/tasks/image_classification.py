"""The section of image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import NonNegative, Positive, Rate
from toolkit.recipe.tasks.base import Direction, Task

Channels = tuple[float, float, float]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Ratio = Annotated[float, Field(gt=0.0)]
Alpha = Annotated[float, Field(ge=0.0)]


class ImageClassification(Task):
    """Tell the class of an image: folders CLASS/NAME.jpg, columns of images in Parquet and Arrow, IDX files."""

    implementation: ClassVar[str] = "toolkit.tasks.images.image_classification:ImageClassificationTask"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor"})
    has_length: ClassVar[bool] = False
    reads_media: ClassVar[bool] = True
    needs_processor: ClassVar[bool] = False
    settings: ClassVar[frozenset[str]] = Task.settings | {
        "random_crop", "crop_scale", "crop_ratio", "crop_padding", "horizontal_flip", "color_jitter", "rand_augment",
        "rand_augment_operations", "random_erasing", "mixup_alpha", "cutmix_alpha", "channels_last",
    }  # fmt: skip
    identity: ClassVar[frozenset[str]] = frozenset({"image_size", "image_mean", "image_std", "center_crop"})
    needs: ClassVar[Mapping[str, str]] = {"rand_augment_operations": "rand_augment"}

    name: Literal["image_classification"] = "image_classification"
    """Image classification."""
    image_field: str = "image"
    """Column with the image: its bytes, or the path of its file, from the folder of the data file on."""
    label_field: str = "label"
    """Column with the class, an integer or a name; of a folder of images the name of the folder that holds each."""
    image_size: Positive | None = None
    """Side of the square that the model sees, in pixels; None: what the checkpoint's image processor says, 224 without one."""
    image_mean: Channels | None = None
    """Mean of each channel, which is subtracted from pixels of 0 to 1; None: the image processor's, else ImageNet's."""
    image_std: Channels | None = None
    """Standard deviation of each channel, which they are divided by then; None: as image_mean."""
    center_crop: Share | None = None
    """Share of an image's shorter side that evaluation sees, a square in the middle; None: the image processor's way, else 0.875."""
    random_crop: Literal["resized", "padded", "none"] = "resized"
    """What training sees of an image. "resized": a part of random area and shape (crop_scale, crop_ratio), resized; "padded": all of it, shifted by at most crop_padding pixels; "none": what evaluation sees."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """random_crop "resized": least and largest share of the image's area (Szegedy et al. 2014, arXiv 1409.4842)."""
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """random_crop "resized": least and largest width / height."""
    crop_padding: NonNegative = 4
    """random_crop "padded": black pixels added on each side of the resized image, of which a square is cut."""
    horizontal_flip: Rate = 0.5
    """Probability of mirroring a training image, left to right."""
    color_jitter: Alpha = 0.0
    """Brightness, contrast and saturation of a training image are each changed by a factor within 1 +- this; 0: they stay."""
    rand_augment: NonNegative = 0
    """Magnitude, 1 to 30, of operations drawn for each training image (RandAugment, arXiv 1909.13719); 9 is usual; 0: none."""
    rand_augment_operations: Positive = 2
    """How many operations are drawn for each image."""
    random_erasing: Rate = 0.0
    """Probability of filling a rectangle of a training image, 2 to 33 % of it, with noise (arXiv 1708.04896)."""
    mixup_alpha: Alpha = 0.0
    """Blend each training image, and its class, with its neighbour in the global batch, by a share of Beta(alpha, alpha) (mixup, arXiv 1710.09412); 0: never."""
    cutmix_alpha: Alpha = 0.0
    """Put a rectangle of the neighbour into each training image, likewise (CutMix, arXiv 1905.04899); with mixup_alpha, one of both for each image by the toss of a coin; 0: never."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    channels_last: bool = False
    """Lay pixels out with the channels of each together, in which convolutions are faster on GPUs with tensor cores."""
    max_pixels: Positive = 50_000_000
    """Most pixels of an image: a larger one is not decoded; see data.unreadable."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise RecipeError(
                    f"task.{name}={(low, high)}",
                    expected="the least first, then the largest",
                    do=f"set task.{name}={(high, low)}",
                )
        if self.rand_augment > 30:
            raise RecipeError(
                f"task.rand_augment={self.rand_augment}", expected="a magnitude of 1 to 30", do="lower it; 9 is usual"
            )

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of an image, the share of right answers, that of always answering the most frequent training class, the
        share of images whose class is among the five most likely, the mean F1 of the classes and Matthews' correlation."""
        return {
            "loss": "falls",
            "accuracy": "rises",
            "majority_accuracy": "stays",
            "top5_accuracy": "rises",
            "f1_macro": "rises",
            "mcc": "rises",
        }
