"""The IDX format of MNIST and its kin: a file of images and one of labels, as a table of PNG images and integers.

http://yann.lecun.com/exdb/mnist: two zero bytes, 8 for unsigned bytes, the number of dimensions, each as 4 bytes with the
highest first, then the numbers.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.reading.file_names import idx_labels
from toolkit.errors import DataError, one_line

if TYPE_CHECKING:
    import datasets

_UNSIGNED_BYTES = 8


def idx_features() -> datasets.Features:
    """The columns of such files."""
    import datasets  # a second, which the catalog of data sets does not need

    return datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})


def idx_tables(path: Path, piece: int) -> Iterator[pyarrow.Table]:
    """The images of `path` and their labels, in pieces of `piece` rows. Raises DataError for what does not fit together."""
    images, labels_path = read_idx(path), labels_beside(path)
    labels = read_idx(labels_path)
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if not is_image or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{str(path)!r} holds numbers {list(images.shape)}, and {labels_path.name!r} {list(labels.shape)}",
            expected="images [N, height, width] or [N, height, width, 3], and a label [N] for each",
            do="use two files that belong together",
        )
    schema = idx_features().arrow_schema
    for start in range(0, len(images), piece):
        rows = [{"bytes": _png(image), "path": None} for image in images[start : start + piece]]
        values = {"image": rows, "label": labels[start : start + piece].astype(np.int64)}
        yield pyarrow.Table.from_pydict(values, schema=schema)


def labels_beside(path: Path) -> Path:
    """The file of labels that belongs to the images `path`. Raises DataError where there is none."""
    labels = idx_labels(path)
    if not labels.exists():
        raise DataError(
            f"{str(path)!r} has no file of labels beside it",
            expected=f"{labels.name!r}",
            do="put it there",
        )
    return labels


def read_idx(path: Path) -> NDArray[Any]:
    """The numbers in `path`, which may be compressed by gzip. Raises DataError for a damaged file."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, one_line(error)) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTES:
        raise _damaged(path, "it does not begin as IDX files of unsigned bytes do")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if len(shape) != content[3] or len(content) - start != math.prod(shape):
        raise _damaged(path, f"it says {shape} and has {len(content) - start:,} bytes of numbers")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{str(path)!r} cannot be read as IDX: {why}",
        expected="what its name says, a whole file of the IDX format",
        do="download it again",
    )


def _png(image: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(file, "PNG", compress_level=1)
    return file.getvalue()
