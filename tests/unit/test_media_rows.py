"""Rows of images: folders with classes or tables, Parquet, saved data sets, IDX, JSON that names files; and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from tests import images
from toolkit.data.media.stored import Unreadable, located, stored
from toolkit.data.reading.find_files import check_location
from toolkit.data.reading.idx_rows import read_idx
from toolkit.data.reading.sources import Source, open_source
from toolkit.errors import DataError


def opened(place: Path, cache: Path, **wanted: Any) -> Source:
    return open_source(str(place), **{"split": "train", "cache_dir": cache, **wanted})


def png(value: int = 0, size: tuple[int, int] = (6, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def test_a_folder_for_each_class_in_a_folder_for_each_split(tmp_path: Path) -> None:
    place = images.folder(tmp_path / "data", train=6, test=3)
    (place / "notes.md").write_text("not read")
    train, test = opened(place, tmp_path), opened(place, tmp_path, split="test")
    assert [row["label"] for row in train.rows] == ["circle", "circle", "square", "square", "stripes", "stripes"]
    assert len(test.rows) == 3 and test.rows[0]["file_name"] == "test/circle/000.png"
    assert train.rows[0]["image"] == {"bytes": None, "path": str(place / "train/circle/000.png")}
    assert stored(train.rows[0]["image"], "x").content == (place / "train/circle/000.png").read_bytes()
    check_location(str(place), "test", "data.evaluation")
    with pytest.raises(DataError, match=r"data\.split='validation' is not a split"):
        opened(place, tmp_path, split="validation")
    with pytest.raises(DataError, match=r"data\.split='validation' is not a split"):
        check_location(str(place), "validation", "data.train")


def test_classes_may_be_called_as_splits_are(tmp_path: Path) -> None:
    """Trains and cars: not every folder is a split, so none is."""
    for name in ("train", "car"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(png())
    rows = opened(tmp_path / "data", tmp_path).rows
    assert [row["label"] for row in rows] == ["car", "train"]


def test_folders_of_one_name_are_one_class_and_said(tmp_path: Path) -> None:
    for folder in ("train/wild/cat", "train/tame/cat", "train/tame/dog", "test/cat"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "1.png").write_bytes(png())
    source = opened(tmp_path / "data", tmp_path)
    assert [row["label"] for row in source.rows] == ["cat", "dog", "cat"]
    [remark] = source.remarks
    assert remark.startswith("the folders tame/cat, wild/cat in ") and "are one class, 'cat': " in remark
    assert opened(tmp_path / "data", tmp_path, split="test").remarks == ()


def test_the_content_is_that_of_names_and_bytes(tmp_path: Path) -> None:
    place = images.folder(tmp_path / "a", train=3, test=0)
    other = images.folder(tmp_path / "b", train=3, test=0)
    contents = [opened(folder, tmp_path).content for folder in (place, other)]
    assert contents[0] == contents[1]
    (other / "train/circle/000.png").write_bytes(png(7))
    assert opened(other, tmp_path).content != contents[0]
    moved = images.folder(tmp_path / "c", train=3, test=0)
    (moved / "train/circle/000.png").rename(moved / "train/square/000.png")
    assert opened(moved, tmp_path).content != contents[0]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_says_more(ending: str, tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    for number in range(3):
        (place / f"{number}.png").write_bytes(png(number))
    said = [{"file_name": f"{number}.png", "caption": f"number {number}"} for number in (2, 0)]
    table = place / f"metadata.{ending}"
    if ending == "csv":
        table.write_text("file_name,caption\n" + "".join(f"{row['file_name']},{row['caption']}\n" for row in said))
    elif ending == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in said))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(said), table)
    source = opened(place, tmp_path)
    assert [(row["file_name"], row["caption"]) for row in source.rows] == [("0.png", "number 0"), ("2.png", "number 2")]
    assert "label" not in source.rows.column_names
    assert source.remarks == (f"1 file in {str(place)!r} that no metadata table names left out",)


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    (place / "1.png").write_bytes(png())
    (place / "metadata.jsonl").write_text('{"file_name": "2.png"}\n')
    with pytest.raises(DataError, match=r"row 1 of '.*metadata\.jsonl' names '2\.png', which is not there"):
        opened(place, tmp_path)
    (place / "metadata.jsonl").write_text('{"file": "1.png"}\n')
    with pytest.raises(DataError, match=r"has no file_name; its columns are file"):
        opened(place, tmp_path)


def test_rows_beside_images_are_the_data(tmp_path: Path) -> None:
    """What a JSON file names lies beside it: the folder holds rows, not images."""
    place = tmp_path / "data"
    (place / "images").mkdir(parents=True)
    (place / "images" / "1.png").write_bytes(png(9))
    (place / "rows.jsonl").write_text('{"image": "images/1.png", "label": "nine"}\n')
    source = opened(place, tmp_path)
    assert list(source.rows) == [{"image": "images/1.png", "label": "nine"}] and source.folder == place
    assert stored(located("images/1.png", source.folder), "x").content == png(9)


def test_images_and_recordings_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("1.png", "2.wav"):
        (tmp_path / "data" / name).write_bytes(b"x")
    with pytest.raises(DataError, match="holds images and recordings"):
        opened(tmp_path / "data", tmp_path)
    with pytest.raises(DataError, match="is one image file"):
        opened(tmp_path / "data" / "1.png", tmp_path)


def described(rows: list[dict[str, Any]]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "more": datasets.List(datasets.Image())})
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("form", ["parquet", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_images_stay_encoded(form: str, streaming: bool, tmp_path: Path) -> None:
    row = {"image": {"bytes": png(1), "path": None}, "more": [{"bytes": png(2), "path": "b.png"}]}
    rows = described([row, row])
    place = tmp_path / ("data.parquet" if form == "parquet" else "data")
    rows.to_parquet(place) if form == "parquet" else rows.save_to_disk(place)
    found = next(iter(opened(place, tmp_path / "cache", streaming=streaming).rows))
    assert found["image"]["bytes"] == png(1) and found["more"][0]["bytes"] == png(2)


def write_idx(path: Path, values: np.ndarray) -> Path:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_idx(tmp_path: Path) -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (5, 7, 6), np.uint8)
    place = tmp_path / "data"
    place.mkdir()
    write_idx(place / "train-images-idx3-ubyte.gz", pixels)
    write_idx(place / "train-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8))
    source = opened(place, tmp_path / "cache")
    assert [row["label"] for row in source.rows] == [0, 1, 2, 3, 4]
    found = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in source.rows]
    assert np.array_equal(np.stack(found), pixels)
    write_idx(place / "train-labels-idx1-ubyte.gz", np.array([4, 1, 2, 3, 4], np.uint8))
    again = opened(place, tmp_path / "cache")
    assert again.content != source.content and again.rows[0]["label"] == 4


def test_damaged_idx(tmp_path: Path) -> None:
    file = write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="has no file of labels beside it"):
        opened(file, tmp_path / "cache")
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match=r"holds numbers \[2, 3, 3\], and 'train-labels-idx1-ubyte' \[3\]"):
        opened(file, tmp_path / "cache")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"it says \[2, 3, 3\] and has 17 bytes"):
        read_idx(file)
    file.write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match="does not begin as IDX files"):
        read_idx(file)


def test_values_that_are_no_image() -> None:
    for value, what in ((None, "null"), (7, "7"), ({"bytes": None, "path": None}, "None"), ("", "''")):
        with pytest.raises(DataError, match=what):
            stored(value, "task.image_field='image'")
    with pytest.raises(DataError, match=r"is the address 'https://a/b\.png'"):
        stored("https://a/b.png", "x")
    with pytest.raises(Unreadable, match=r"'/not/there\.png' cannot be read: No such file"):
        stored("/not/there.png", "x")
    assert located("https://a/b.png", Path("/f")) == "https://a/b.png"
    assert located({"bytes": b"x", "path": "name.png"}, Path("/f"))["path"] == "name.png"
    assert located({"bytes": None, "path": "name.png"}, Path("/f"))["path"] == "/f/name.png"


def test_two_splits_are_splits_whatever_lies_beside_them(tmp_path: Path) -> None:
    place = images.folder(tmp_path / "data", train=6, test=3)
    (place / "samples").mkdir()
    (place / "samples" / "a.png").write_bytes(png())
    (place / "stray.png").write_bytes(png())
    (place / "README.txt").write_text("what this is")
    source = opened(place, tmp_path)
    assert {row["label"] for row in source.rows} == set(images.CLASSES) and len(source.rows) == 6
    assert sorted(path.name for path in source.left_out) == ["a.png", "stray.png"]
    assert len(opened(place, tmp_path, split="test").rows) == 3


def test_one_table_about_both_splits(tmp_path: Path) -> None:
    place = images.folder(tmp_path / "data", train=3, test=3)
    names = [str(path.relative_to(place)) for path in sorted(place.glob("*/*/*.png"))]
    (place / "metadata.csv").write_text("file_name,caption\n" + "".join(f"{name},c {name}\n" for name in names))
    for split in ("train", "test"):
        rows = opened(place, tmp_path, split=split).rows
        assert len(rows) == 3 and all(row["caption"] == f"c {row['file_name']}" for row in rows)


def test_a_link_that_leads_nowhere_is_one_example(tmp_path: Path) -> None:
    place = images.folder(tmp_path / "data", train=3, test=0)
    before = opened(place, tmp_path).content
    (place / "train" / "circle" / "link.png").symlink_to("/not/there.png")
    source = opened(place, tmp_path)
    assert len(source.rows) == 4 and source.content != before
    with pytest.raises(Unreadable, match=r"link\.png' cannot be read: No such file"):
        stored(source.rows[1]["image"], "x")


def test_addresses_and_empty_cells() -> None:
    assert located("", Path("/f")) == "" and located("data:image/png;base64,AA", Path("/f")).startswith("data:")
    with pytest.raises(DataError, match="is the address 'data:image"):
        stored("data:image/png;base64,AA", "x")
    with pytest.raises(Unreadable, match="cannot be read"):
        stored("a\0b", "x")


def test_idx_of_one_channel_and_damaged_streams(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx4-ubyte", np.full((2, 5, 5, 1), 7, np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    rows = opened(tmp_path / "train-images-idx4-ubyte", tmp_path / "cache").rows
    assert np.asarray(Image.open(io.BytesIO(rows[0]["image"]["bytes"]))).shape == (5, 5)
    broken = write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.zeros((2, 30, 30), np.uint8))
    content = bytearray(broken.read_bytes())
    content[12:20] = b"\xff" * 8
    broken.write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot be read as IDX"):
        read_idx(broken)
