"""Small grey pictures of clothes: Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747)."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.reading.idx_rows import idx_tables
from toolkit.data.sets.apt_package import DebianPackage
from toolkit.data.sets.rows import Row, Splits

PACKAGE = DebianPackage(
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    download_bytes=30_900_652,
    unpacked_bytes=32_000_000,
)
LICENCE = "MIT, says the package"
CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_FOLDER = "usr/share/datasets/fashion-mnist"
_PIECE = 1000


def clothes(root: Path) -> Splits:
    """{"image", "label"}: 28 x 28 grey pixels as PNG, and the name of the class (T-shirt stands for T-shirt/top).

    60,000 pictures to train on and 10,000 held out, as their makers divided them, in their order.
    """
    return {
        split: _rows(root / _FOLDER / f"{name}-images-idx3-ubyte.gz")
        for split, name in (("train", "train"), ("test", "t10k"))
    }


def _rows(path: Path) -> list[Row]:
    return [
        {"image": row["image"], "label": CLASSES[row["label"]]}
        for table in idx_tables(path, _PIECE)
        for row in table.to_pylist()
    ]
