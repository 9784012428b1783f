"""Image classification without an engine: what is decoded and refused, what training sees, what is mixed, what is counted."""

from __future__ import annotations

import io
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests import images
from toolkit.data.media.images import check_image, decode_image, size_of
from toolkit.data.media.stored import Unreadable
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.recipe import Batch, Checkpoint, Data, ImageClassification, Model, Optimizer, Precision, Recipe, Tracking
from toolkit.tasks.images import augmentation
from toolkit.tasks.images.image_classification import ImageClassificationTask
from toolkit.tasks.images.mixing import mixed
from toolkit.tasks.images.processors import load_image_processor, processor_for, side_of
from toolkit.tasks.images.rand_augment import OPERATIONS, rand_augment
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.progress import Display

Kept = dict[str, Any]
MOST = 1_000_000


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def problem(rows: Path, **changes: Any) -> Recipe:
    values: Kept = {
        "model": Model(architecture="resnet", weights="random", config=images.CONFIGS["resnet"]),
        "data": Data(train=str(rows), packing=False, prefetch=0),
        "task": ImageClassification(image_size=images.SIDE),
        "batch": Batch(global_size=4, micro_size=2),
        "optimizer": Optimizer(learning_rate=1e-3),
        "precision": Precision(dtype="fp32"),
        "checkpoint": Checkpoint(export=False),
        "tracking": Tracking(tensorboard=False),
        "steps": 2,
    }
    return Recipe(**{**values, **changes})


def prepared(recipe: Recipe) -> tuple[Inputs, list[str]]:
    said: list[str] = []
    display = Display(is_main=False)
    display.say = said.append  # type: ignore[method-assign]
    return prepare_inputs(recipe, 0, 1, display), said


# Decoding


def test_every_kind_of_image_becomes_rgb() -> None:
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    deep = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)
    for image in (grey, deep, grey.convert("RGBA"), grey.convert("P"), grey.convert("1"), grey.convert("LA")):
        found = decode_image(encoded(image), "x", MOST)
        assert found.mode == "RGB" and found.size == (8, 6)
    pixels = np.asarray(decode_image(encoded(deep), "x", MOST))
    assert pixels[0, 1, 0] == 1000 // 256 and pixels[-1, -1, 0] == 47000 // 256
    assert decode_image(encoded(grey.convert("CMYK"), "JPEG"), "x", MOST).mode == "RGB"


def test_grey_of_more_bits_is_scaled() -> None:
    ramp = np.arange(48, dtype=np.float32).reshape(6, 8)
    cases = {"F": ramp / 47, "I": ramp * 5, "I of 16 bits": ramp * 1000}
    for values in cases.values():
        image = Image.fromarray(values if values is cases["F"] else values.astype(np.int32))
        pixels = np.asarray(decode_image(encoded(image, "TIFF"), "x", MOST))[..., 0]
        assert pixels.max() > 180 and pixels[0, 0] == 0
    for values in (-ramp, ramp * 1e5, np.full((2, 2), np.nan, np.float32)):
        for look in (check_image, decode_image):
            with pytest.raises(Unreadable, match=r"a\.tiff cannot be decoded: its grey values go from"):
                look(encoded(Image.fromarray(values), "TIFF"), "a.tiff", MOST)


def test_cameras_turn_images() -> None:
    turned = Image.new("RGB", (8, 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    content = encoded(turned, "JPEG", exif=exif)
    assert (
        decode_image(content, "x", MOST).size
        == size_of(content, "x", MOST)
        == check_image(content, "x", MOST)
        == (6, 8)
    )


def test_what_cannot_be_decoded_is_named() -> None:
    whole = encoded(Image.fromarray(draws().integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")
    cases = {
        b"": "a.jpg is empty",
        b"<html>": "a.jpg is in no format that Pillow knows",
        whole[: len(whole) // 2]: "a.jpg cannot be decoded: .*truncated",
        encoded(Image.new("RGB", (40, 40)))[:60]: "a.jpg cannot be decoded",
    }
    for content, message in cases.items():
        for look in (check_image, decode_image):
            with pytest.raises(Unreadable, match=message):
                look(content, "a.jpg", MOST)


def test_a_bomb_is_not_decoded() -> None:
    """A file of 300 kB that would be 300 MB of pixels is refused by what it says of itself."""
    bomb = encoded(Image.new("1", (10_000, 10_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for look in (check_image, decode_image, size_of):
        with pytest.raises(Unreadable, match=r"has 10000 x 10000 pixels, 100 million") as caught:
            look(bomb, "bomb.png", 50_000_000)
    assert caught.value.expected == "at most 50 million, task.max_pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"


# A folder with faults


def damaged(place: Path, number: int = 3) -> Path:
    """A folder with an empty file, half a file and a text among good images."""
    data = images.folder(place, train=12, test=0)
    whole = (data / "train/circle/000.png").read_bytes()
    for name, content in list(
        {"circle/bad0.png": b"", "square/bad1.png": whole[:80], "stripes/bad2.png": b"none"}.items()
    )[:number]:
        (data / "train" / name).write_bytes(content)
    return data


def test_an_unreadable_image_ends_the_run_with_its_name(tmp_path: Path) -> None:
    data = damaged(tmp_path / "data")
    with pytest.raises(DataError, match=r"^row 5 of data\.train: \S*circle/bad0\.png is empty") as caught:
        prepared(problem(data))
    assert caught.value.exit_code == 2 and "data.unreadable='skip'" in caught.value.do


@pytest.mark.parametrize("workers", [0, 3])
def test_or_is_left_out_and_counted(workers: int, tmp_path: Path) -> None:
    data = damaged(tmp_path / "data")
    run = problem(data, data=Data(train=str(data), packing=False, unreadable="skip", workers=workers, prefetch=0))
    inputs, said = prepared(run)
    assert inputs.batches.store.num_rows == 15 and len(inputs.batches.store) == 12  # type: ignore[union-attr]
    assert any("12 kept; left out: 3 unreadable" in line for line in said)
    assert sum("bad" in line for line in said) == 3
    # The rows that are left are read by their own place.
    labels = [inputs.batches.store[index]["labels"][0] for index in range(12)]  # type: ignore[union-attr]
    assert labels == [0] * 4 + [1] * 4 + [2] * 4


def test_a_file_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    data = images.folder(tmp_path / "data", train=4, test=0)
    inputs, _ = prepared(problem(data))
    (data / "train/circle/000.png").unlink()
    with pytest.raises(Unreadable, match=r"'.*circle/000\.png' cannot be read: No such file"):
        list(inputs.batches.iterate(0, 1))


def test_rows_without_an_image_or_a_class(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    (tmp_path / "1.png").write_bytes(encoded(Image.new("RGB", (20, 20))))
    for row, message in (
        ({"picture": "1.png", "label": "a"}, r"image is not there, while other rows have it; the columns are picture"),
        ({"image": "2.png", "label": "a"}, r"'.*2\.png' cannot be read: No such file"),
        ({"image": 5, "label": "a"}, r"task\.image_field='image' is 5"),
    ):
        rows.write_text("".join(json.dumps(one) + "\n" for one in ({"image": "1.png", "label": "b"}, row)))
        with pytest.raises(DataError, match=message):
            prepared(problem(rows))
    rows.write_text('{"image": "1.png", "label": "b"}\n{"image": "1.png", "label": null}\n')
    with pytest.raises(DataError, match=r"row 2 of data\.train, .*task\.label_field='label' is null"):
        prepared(problem(rows))


def test_a_recipe_that_does_not_fit(tmp_path: Path) -> None:
    data = images.folder(tmp_path / "data", train=4, test=0)
    vit = Model(architecture="vit", weights="random", config=images.CONFIGS["vit"])
    with pytest.raises(ModelError, match=r"does not take images of 24 x 24 pixels: .*doesn't match model"):
        prepared(problem(data, model=vit, task=ImageClassification(image_size=24)))
    again = Model(
        architecture="resnet", weights="random", config=images.CONFIGS["resnet"], activation_checkpointing=True
    )
    with pytest.raises(ModelError, match=r"ResNetForImageClassification cannot compute its layers a second time"):
        prepared(problem(data, model=again))
    with pytest.raises(RecipeError, match=r"batch\.sequence_length=9 has no effect with task\.name='image_class"):
        problem(data, batch=Batch(global_size=4, sequence_length=9))
    with pytest.raises(RecipeError, match=r"task\.crop_scale=\(1\.0, 0\.5\)"):
        ImageClassification(crop_scale=(1.0, 0.5))
    with pytest.raises(RecipeError, match=r"task\.rand_augment=31"):
        ImageClassification(rand_augment=31)
    with pytest.raises(RecipeError, match=r"data\.packing=True with task\.name='image_classification'"):
        prepared(problem(data, data=Data(train=str(data))))
    with pytest.raises(RecipeError, match=r"task\.rand_augment_operations=3 has no effect"):
        problem(data, task=ImageClassification(rand_augment_operations=3))


# What the model sees


def test_an_evaluation_sees_what_the_processor_makes(tmp_path: Path) -> None:
    path = images.checkpoint("resnet", tmp_path / "model")
    task = ImageClassificationTask(ImageClassification(), load_image_processor(Model(path=str(path))))
    image = images.picture("circle", draws())
    example = {**task.source({"image": encoded(image)}), "labels": np.zeros(1, np.int32)}
    found = task.transform(example, draws(), is_trained=False)["pixel_values"]
    wanted = np.asarray(image.resize((images.SIDE, images.SIDE), Image.Resampling.BILINEAR), np.float32)
    assert np.allclose(found, (wanted.transpose(2, 0, 1) / 255 - 0.4) / 0.3, atol=1e-5)
    ready = Image.fromarray(draws().integers(0, 256, (16, 16, 3), np.uint8))
    plain = task.processor(images=ready, return_tensors="np", do_resize=False)["pixel_values"][0]
    assert np.array_equal(task.ranges.of(ready), plain)
    # "none" shows training the same, mirrored or not.
    same = ImageClassificationTask(
        ImageClassification(random_crop="none", horizontal_flip=0.0), load_image_processor(Model(path=str(path)))
    )
    assert np.array_equal(same.transform(example, draws(), is_trained=True)["pixel_values"], found)


def test_channels_in_another_order() -> None:
    """MobileViT's processor gives blue first, in training as well."""
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    given = MobileViTImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    task = ImageClassificationTask(ImageClassification(horizontal_flip=0.0), given)
    red = task.source({"image": encoded(Image.new("RGB", (40, 40), (255, 0, 0)))})
    for is_trained in (True, False):
        pixels = task.transform({**red, "labels": np.zeros(1)}, draws(), is_trained=is_trained)["pixel_values"]
        assert pixels.mean(axis=(1, 2)).tolist() == pytest.approx([0.0, 0.0, 1.0])


def test_sizes_and_ranges_of_the_recipe(tmp_path: Path) -> None:
    path = images.checkpoint("resnet", tmp_path / "model")
    own = load_image_processor(Model(path=str(path)))
    changed = processor_for(ImageClassification(image_size=40, image_mean=(0.1, 0.2, 0.3)), own)
    assert side_of(own) == images.SIDE and side_of(changed) == 40
    assert [*changed.image_mean] == [0.1, 0.2, 0.3] and [*own.image_mean] == [0.4] * 3
    fresh = processor_for(ImageClassification(image_size=48, center_crop=0.5), None)
    assert side_of(fresh) == 48 and fresh.crop_pct == 0.5
    with pytest.raises(RecipeError, match=r"task\.center_crop=0\.5 with ViTImageProcessor"):
        processor_for(ImageClassification(center_crop=0.5), own)


@pytest.mark.parametrize("kind", ["resized", "padded"])
def test_crops(kind: str) -> None:
    image = images.picture("square", draws(), (50, 30))
    how = augmentation.Crop(kind, 16, (0.2, 0.4), (0.75, 4 / 3), 4, Image.Resampling.BILINEAR)
    found = [augmentation.crop(image, how, draws(seed)) for seed in range(20)]
    assert {one.size for one in found} == {(16, 16)}
    assert len({one.tobytes() for one in found}) > 10
    assert augmentation.crop(image, how, draws(3)).tobytes() == found[3].tobytes()
    # No part of that shape fits: the largest in the middle.
    thin = Image.new("RGB", (400, 2))
    assert augmentation.crop(thin, how, draws()).size == (16, 16)


def test_parts_have_the_area_and_the_shape_asked_for() -> None:
    how = augmentation.Crop("resized", 16, (0.2, 0.4), (0.5, 2.0), 0, Image.Resampling.BILINEAR)
    boxes = [augmentation._part((300, 200), how, draws(seed)) for seed in range(200)]
    shares = [(right - left) * (low - top) / 60000 for left, top, right, low in boxes]
    ratios = [(right - left) / (low - top) for left, top, right, low in boxes]
    assert 0.19 < min(shares) < 0.22 and 0.38 < max(shares) < 0.41
    assert 0.48 < min(ratios) < 0.6 and 1.7 < max(ratios) < 2.1
    assert all(left >= 0 and top >= 0 and right <= 300 and low <= 200 for left, top, right, low in boxes)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    image = images.picture("stripes", draws(), (40, 40))
    for share in (-1.0, 0.3, 1.0):
        if share > 0 or name not in ("posterize", "solarize"):
            found = OPERATIONS[name](image, share)
            assert found.size == image.size and found.mode == "RGB"
    changed = OPERATIONS[name](image, 1.0).tobytes() != image.tobytes()
    assert changed == (name != "identity")


def test_rand_augment_is_drawn_from_the_generator() -> None:
    image = images.picture("circle", draws(), (40, 40))
    found = {seed: rand_augment(image, 9, 2, draws(seed)).tobytes() for seed in range(12)}
    assert len(set(found.values())) > 6
    assert rand_augment(image, 9, 2, draws(5)).tobytes() == found[5]


def test_erasing_fills_a_part_with_noise() -> None:
    shares = []
    for seed in range(50):
        pixels = augmentation.erase(np.full((3, 40, 40), 7.0, np.float32), 1.0, draws(seed))
        shares.append(float((pixels[0] != 7.0).mean()))
    assert min(shares) > 0.01 and max(shares) < 0.36 and max(shares) > 0.2
    same = np.full((3, 40, 40), 7.0, np.float32)
    assert (augmentation.erase(same, 0.0, draws()) == 7.0).all()


def test_mixed_images_are_what_their_shares_say() -> None:
    one, other = np.zeros((3, 20, 20), np.float32), np.ones((3, 20, 20), np.float32)
    for seed in range(30):
        pixels, share = mixed(one, other, 1.0, 0.0, draws(seed))
        assert np.allclose(pixels, 1.0 - share, atol=1e-6)
        pixels, share = mixed(one, other, 0.0, 1.0, draws(seed))
        assert pixels.mean() == pytest.approx(1.0 - share, abs=1e-6) and set(np.unique(pixels)) <= {0.0, 1.0}
    ways = [len(np.unique(mixed(one, other, 1.0, 1.0, draws(seed))[0])) for seed in range(40)]
    assert 5 < sum(way == 2 for way in ways) < 35, "a coin decides"


def test_neighbours_do_not_depend_on_who_draws(tmp_path: Path) -> None:
    """The global batch of one rank is that of two, with other micro-batches and numbers of threads."""
    data = images.folder(tmp_path / "data", train=12, test=0)
    task = ImageClassification(image_size=16, mixup_alpha=0.5, cutmix_alpha=0.5, random_erasing=0.5)

    def batches(ranks: int, micro_size: int, workers: int) -> list[torch.Tensor]:
        run = problem(
            data,
            task=task,
            batch=Batch(global_size=6, micro_size=micro_size),
            data=Data(train=str(data), packing=False, workers=workers, prefetch=0),
            steps=3,
        )
        parts = [prepare_inputs(run, rank, ranks, Display(is_main=False)).batches for rank in range(ranks)]
        found = []
        for steps in zip(*(part.iterate(0, 3) for part in parts), strict=True):
            micro = zip(*(step.micro_batches for step in steps), strict=True)
            whole = [batch for group in micro for batch in group]
            found.append(
                torch.cat(
                    [
                        torch.cat([b["pixel_values"].flatten(1), b["share"][:, None], b["other_labels"][:, None]], 1)
                        for b in whole
                    ]
                )
            )
        return found

    wanted = batches(1, 6, 0)
    for ranks, micro_size, workers in ((1, 1, 3), (2, 3, 2), (2, 1, 0), (3, 2, 2)):
        assert all(torch.equal(*pair) for pair in zip(batches(ranks, micro_size, workers), wanted, strict=True))


def test_figures_are_those_of_the_logits() -> None:
    task = ImageClassificationTask(ImageClassification(image_size=8), None)
    task.kind.fit([{"label": f"c{number}"} for number in range(7)], None, {}, str)
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 6, -100])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return type("Output", (), {"logits": logits})

    sums = task.evaluate(Model(), {"pixel_values": torch.zeros(5, 3, 8, 8), "labels": labels})
    found = task.metrics(sums)
    real = logits[:4]
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(real, labels[:4])))
    order = real.argsort(1, descending=True)
    assert found["accuracy"] == sum(int(row[0]) == int(label) for row, label in zip(order, labels, strict=False)) / 4
    assert (
        found["top5_accuracy"]
        == sum(int(label) in row[:5].tolist() for row, label in zip(order, labels, strict=False)) / 4
    )


# Verbs that know texts alone


def test_verbs_that_know_texts_alone_say_so(tmp_path: Path) -> None:
    from toolkit.cli.parity import parity
    from toolkit.draft import undrafted

    recipe = Path(__file__).parents[2] / "recipes" / "images_resnet18_fashion_zero2.py"
    with pytest.raises(RecipeError, match=r"task\.name='image_classification': `toolkit parity` has no small model"):
        parity(recipe, [], steps=4, dtype="fp32", architecture=None, timeout_s=9.0, as_json=False)
    rows = [
        {"image": {"bytes": None, "path": "a/1.jpg"}, "label": "a", "file_name": "a/1.jpg"},
        {"image": None, "label": "b"},
    ]
    found = undrafted.recognised(rows)
    assert found is not None and found.task == "image_classification"
    assert found.fields == {"image_field": "image", "label_field": "label"}
    assert undrafted.recognised([{"image": "a page", "label": "x"}]) is None
