"""Rendered pictures: what they show is what is said of them, and no scene is in both splits."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import tiny
from toolkit.data.sets import captions
from toolkit.models.vision_start import TOKENS, assemble
from toolkit.recipe import Batch, ImageTextToText, Model
from toolkit.tasks.vision_language.batches import SPANS
from toolkit.tasks.vision_language.image_text import ImageTextTask


@pytest.fixture(scope="module")
def splits() -> Any:
    return captions.pictures(Path())


def seen(row: dict[str, Any]) -> dict[str, str]:
    """Colour by place of all that is in the picture, read from its pixels."""
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    colours = {value: name for name, value in captions.COLOURS.items()}
    found = {}
    for number, place in enumerate(captions.PLACES):
        y, x = divmod(number, 3)
        pixel = image.getpixel((8 + 16 * x, 8 + 16 * y))
        if pixel in colours:
            found[place] = colours[pixel]
    return found


def test_answers_are_true_and_splits_apart(splits: Any) -> None:
    kinds = dict.fromkeys(captions.ASKED, 0)
    rows = splits["train"][:900] + splits["test"]
    for row in rows:
        found, asked = seen(row), row["question"].split()
        kinds[row["kind"]] += 1
        if row["kind"] == "count":
            assert row["answer"] == captions.NUMBERS[len(found)]
        elif row["kind"] == "caption":
            said = [part.split(" at the ") for part in row["answer"].rstrip(".").split(" and ")]
            assert {place: words.split()[1] for words, place in said} == found
        elif row["kind"] == "colour":
            assert row["answer"] in found.values()
        elif row["kind"] == "place":
            assert row["answer"] in found
        elif row["kind"] == "presence" and row["answer"] == "yes":
            assert asked[-2] in found.values()
    assert all(count > 50 for count in kinds.values())
    pictures = [{row["image"]["bytes"] for row in splits[split]} for split in ("train", "test")]
    assert not pictures[0] & pictures[1] and 0.04 < len(splits["test"]) / len(splits["train"]) < 0.09


def test_what_is_known_without_a_picture(splits: Any) -> None:
    """As the data set's page says it: 18 %."""
    said = {kind: Counter(row["answer"] for row in splits["train"] if row["kind"] == kind) for kind in captions.ASKED}
    usual = {kind: counted.most_common(1)[0][0] for kind, counted in said.items()}
    right = sum(row["answer"] == usual[row["kind"]] for row in splits["test"])
    assert f"{right / len(splits['test']):.0%}".replace("%", " %") in (captions.pictures.__doc__ or "")


def test_the_same_bytes_again(splits: Any) -> None:
    assert captions.pictures(Path()) == splits


def test_the_checkpoint_to_start_from(tmp_path: Path, splits: Any) -> None:
    """One token for each cell of a picture; the same weights whenever it is made; a loss that is that of chance."""
    tokenizer = tiny.byte_tokenizer()
    language = tiny.save(tiny.llama(tokenizer), tokenizer, tmp_path / "language")
    for name in ("one", "two"):
        assemble(language, tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    task = ImageTextTask(ImageTextToText(), ImageTextTask.load_processor(Model(path=str(tmp_path / "one"))))
    model = task.auto_class.from_pretrained(tmp_path / "one", dtype=torch.float32)
    task.meet(model.config, Batch(global_size=1, sequence_length=64))
    [example] = task.encode(splits["train"][0])
    ((start, stop),) = example[SPANS]
    assert task.batches.is_image(example["input_ids"][start:stop]).sum() == TOKENS == 9
    batch = task.collate([[task.transform(example, None, is_trained=True)]])  # type: ignore[arg-type]
    loss = float(task.loss(model, batch, 1.0).total) / task.count(batch)
    assert 0.8 < loss / torch.log(torch.tensor(float(len(task.tokenizer)))) < 1.2
