"""Vision-language tuning: what the model reads of a row, its losses beside plain transformers, and what rows are refused."""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests import tiny, vision
from toolkit.data.example import IGNORED, Example
from toolkit.data.forms.images import BETWEEN, IMAGE, as_parts
from toolkit.data.media.stored import Unreadable
from toolkit.data.packing import Counts
from toolkit.data.store import processor_hash
from toolkit.errors import DataError, ModelError, RecipeError, ToolkitError
from toolkit.models.adapter_plan import plan_adapters
from toolkit.models.config import load_config
from toolkit.models.vision_parts import vision_parts
from toolkit.recipe import Batch, Data, ImageTextToText, LoRA, Model, Recipe
from toolkit.tasks.encoder import encoder_of
from toolkit.tasks.vision_language import processor as processors
from toolkit.tasks.vision_language.batches import SPANS
from toolkit.tasks.vision_language.image_text import ImageTextTask

ROWS = vision.chats(16)
DRAWN = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: vision.checkpoint(family, folder / family) for family in vision.FAMILIES}


def task_of(folder: Path, **fields: Any) -> ImageTextTask:
    task = ImageTextTask(ImageTextToText(**fields), ImageTextTask.load_processor(Model(path=str(folder))))
    config = load_config(Model(path=str(folder)), vocabulary_size=None, overrides={})
    task.meet(config, Batch(global_size=1, sequence_length=512))
    return task


@pytest.fixture(scope="module")
def qwen(folders: dict[str, Path]) -> ImageTextTask:
    return task_of(folders["qwen2_5_vl"])


def by_transformers(task: ImageTextTask, row: dict[str, Any]) -> Any:
    return task.processor.apply_chat_template(vision.shown(row), tokenize=True, return_dict=True, return_tensors="pt")


def picture(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"bytes": vision.picture(number, **fields), "path": None}


def asked(content: Any, **columns: Any) -> dict[str, Any]:
    """A question with `content`, answered."""
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "It is."}]
    return {"messages": messages, **columns}


# What the model reads


@pytest.mark.parametrize("family", vision.FAMILIES)
def test_tokens_are_those_of_the_processor(family: str, folders: dict[str, Path]) -> None:
    task = task_of(folders[family])
    for row in ROWS:
        [example] = task.encode(row)
        assert example["input_ids"].tolist() == by_transformers(task, row)["input_ids"][0].tolist()
        image = task.processor.image_token_id
        assert len(example[SPANS]) == len(row["images"])
        for start, stop in example[SPANS]:
            assert image in example["input_ids"][start:stop] and (example["labels"][start:stop] == IGNORED).all()
        outside = np.ones(len(example["input_ids"]), dtype=bool)
        for start, stop in example[SPANS]:
            outside[start:stop] = False
        assert image not in example["input_ids"][outside]
        said = [part["text"] for message in row["messages"][1::2] for part in message["content"]]
        learned = task.tokenizer.decode(example["input_ids"][example["labels"] != IGNORED])
        for text in said:
            assert text.strip() in learned
        assert "What does" not in learned


@pytest.mark.parametrize("family", vision.FAMILIES)
def test_a_packed_batch_gives_the_losses_and_gradients_of_single_rows(family: str, folders: dict[str, Path]) -> None:
    """Two packs and a row, some without an image, beside plain transformers on what its processor makes of each row."""
    task = task_of(folders[family], freeze_vision_tower=False)
    model = AutoModelForImageTextToText.from_pretrained(folders[family], dtype=torch.float32).eval()
    examples = [task.encode(row)[0] for row in ROWS[:7]]
    ready = [task.transform(example, DRAWN, is_trained=True) for example in examples]
    batch = task.collate([ready[:3], ready[3:6], ready[6:]])
    total = torch.zeros((), dtype=torch.float64)
    for row, example in zip(ROWS, examples, strict=False):
        labels = torch.from_numpy(example["labels"].astype(np.int64))
        logits = model(**by_transformers(task, row), use_cache=False).logits[0, :-1].double()
        total = total + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
    total.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    task.prepare(model)
    found = task.loss(model, batch, 1.0).total
    found.backward()
    assert float(found) == pytest.approx(float(total), rel=1e-6)
    size = float(torch.stack([gradient.norm() for gradient in wanted.values()]).norm())
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained.keys() == wanted.keys(), "what no loss reaches is frozen, and nothing else"
    for name, gradient in trained.items():
        assert gradient is not None and float((gradient - wanted[name]).norm()) < 2e-6 * size, name


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_an_image_stands_in_where_a_batch_has_none(family: str, folders: dict[str, Path]) -> None:
    """The tower is called, and neither loss nor gradients know of it."""
    task = task_of(folders[family], freeze_vision_tower=False)
    model = AutoModelForImageTextToText.from_pretrained(folders[family], dtype=torch.float32).eval()
    task.prepare(model)
    examples = [task.transform(task.encode(row)[0], DRAWN, is_trained=True) for row in (ROWS[0], ROWS[3])]
    assert not any(len(example[SPANS]) for example in examples)
    batch = task.collate([[example] for example in examples])
    assert "pixel_values" in batch and task.count(batch) == sum(map(task.targets, examples))
    calls = []
    tower = model.get_encoder(modality="image")
    tower.register_forward_hook(lambda *_: calls.append(1))
    loss = task.loss(model, batch, 1.0).total
    loss.backward()
    assert calls == [1]
    parts = vision_parts(model)
    for name, parameter in model.named_parameters():
        if name in (parts.tower | parts.projector) - parts.unread:
            assert parameter.grad is not None and not parameter.grad.any(), name
    alone = sum(
        float(model(input_ids=ids[None], labels=labels[None], num_items_in_batch=1).loss)
        for ids, labels in (
            (torch.from_numpy(example["input_ids"]).long(), torch.from_numpy(example["labels"]).long())
            for example in examples
        )
    )
    assert float(loss) == pytest.approx(alone, rel=1e-6)


def test_pixels_of_several_images_are_joined_as_the_processor_joins_them(folders: dict[str, Path]) -> None:
    for family in vision.FAMILIES:
        task, row = task_of(folders[family]), ROWS[2]
        batch = task.collate([[task.transform(task.encode(row)[0], DRAWN, is_trained=True)]])
        wanted = by_transformers(task, row)
        for name in set(wanted) & {"pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask"}:
            found = batch[name]
            if family == "idefics3":  # images in a row of one text there, one after the other here
                wanted[name] = wanted[name][0]
                mask = batch["pixel_attention_mask"].flatten(2).any(-1)
                found = found[mask]
            torch.testing.assert_close(found, wanted[name].to(found.dtype), rtol=0, atol=0)


def test_everything_but_images_is_learned_with_train_on_all(folders: dict[str, Path]) -> None:
    task = task_of(folders["idefics3"], train_on="all")
    [example] = task.encode(ROWS[1])
    spared = np.zeros(len(example["labels"]), dtype=bool)
    for start, stop in example[SPANS]:
        spared[start:stop] = True
    spared[0] = True
    assert ((example["labels"] == IGNORED) == spared).all()


def test_a_template_with_generation_blocks(folders: dict[str, Path]) -> None:
    """It says itself which tokens are learned, and images move them."""
    task = task_of(folders["qwen2_5_vl"])
    plain = task.encode(ROWS[1])[0]["labels"]
    source = task.tokenizer.chat_template
    marked = source.replace(
        "{% for part in message['content'] %}",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'][0]['text'] }}{% endgeneration %}"
        "{% else %}{% for part in message['content'] %}",
    ).replace("{% endfor %}{% endif %}<|im_end|>", "{% endfor %}{% endif %}{% endif %}<|im_end|>")
    marked = marked.replace("{% if message['content'] is string %}{{ message['content'] }}{% else %}", "{% if true %}")
    task.tokenizer.chat_template = marked
    again = task.encode(ROWS[1])[0]["labels"]
    assert "{% generation %}" in marked and again.tolist() == plain.tolist()


# Rows


def text_of(task: ImageTextTask, row: dict[str, Any], folder: Path | None = None) -> str:
    """What the model reads, with one token for each image."""
    [example] = task.encode(task.located(row, folder))
    return "".join(text for text, _ in task.show(example).parts)


def test_forms_of_rows(qwen: ImageTextTask, tmp_path: Path) -> None:
    """One text, however the row is written."""
    (tmp_path / "a.png").write_bytes(vision.picture(1))
    place, content = "<|vision_start|><|image_pad|><|vision_end|>", base64.b64encode(vision.picture(1)).decode()
    wanted = f"<|im_start|>user\n{place}What is it?<|im_end|>\n<|im_start|>assistant\nIt is.<|im_end|>\n"
    text = {"type": "text", "text": "What is it?"}
    question = {"question": "What is it?", "answer": "It is."}
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "It is."}]
    said = [{"role": "user", "content": "What is it?"}]
    answer = [{"role": "assistant", "content": "It is."}]
    rows: list[dict[str, Any]] = [
        asked([{"type": "image"}, text], images=[picture()]),
        asked([{"type": "image", "index": 0, "text": None}, text], image="a.png"),
        asked([{"type": "image", "image": "a.png"}, text]),
        asked([{"type": "image", "path": "a.png"}, text], images=None),
        asked([{"type": "image", "url": (tmp_path / "a.png").as_uri()}, text], images=[]),
        asked([{"type": "image", "image": picture()}, text]),
        asked([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}, text]),
        asked("<image>\nWhat is it?", images=["a.png"]),
        asked("<image> What is it?", images=vision.picture(1)),
        asked("What is it?", images=[str(tmp_path / "a.png")]),
        {"messages": json.dumps(asked("<image>\nWhat is it?")["messages"]), "images": ["a.png"]},
        {"conversations": talk, "image": "a.png"},
        {"prompt": "What is it?", "completion": "It is.", "image": "a.png"},
        {"prompt": said, "completion": answer, "images": ["a.png"]},
        {**question, "image": "a.png"},
        {**question, "images": ["a.png"], "image": "a.png"},
    ]
    for row in rows:
        assert text_of(qwen, row, tmp_path) == wanted, row
        filled = {name for name, value in row.items() if value}
        assert filled <= {*qwen.columns(row)} or filled == {"question", "answer", "images", "image"}
    two = asked("First <image> then\n<image>", images=["a.png", "a.png"])
    assert f"user\nFirst {place} then{place}<|im_end|>" in text_of(qwen, two, tmp_path)
    none = asked("What is it?")
    assert text_of(qwen, none) == wanted.replace(place, "")


def test_captions(folders: dict[str, Path]) -> None:
    for column, fields in (("text", {}), ("caption", {}), ("said", {"text_field": "said"})):
        task = task_of(folders["qwen2_5_vl"], instruction="Describe it.", **fields)
        row = {"image": picture(), column: "A red ball."}
        assert text_of(task, row).endswith(
            "<|vision_end|>Describe it.<|im_end|>\n<|im_start|>assistant\nA red ball.<|im_end|>\n"
        )
        assert (task.recognised(row).name, set(task.columns(row)) & set(row)) == ("captions", {"image", column})
    with pytest.raises(DataError, match="the row has no image"):
        task.encode({"said": "A red ball."})
    with pytest.raises(DataError, match="caption is empty"):
        task_of(folders["qwen2_5_vl"]).encode({"image": picture(), "caption": " "})


def test_messages_behind_the_last_answer_lose_their_images(qwen: ImageTextTask) -> None:
    row = asked([{"type": "image"}, "What is it?"], images=[picture(1), picture(2)])
    row["messages"].append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]})
    [example] = qwen.encode(row)
    assert len(example[SPANS]) == 1 and len(qwen.source(row)["image_lengths"]) == 1


def test_marks() -> None:
    assert as_parts("plain") is None
    assert as_parts(f"a{BETWEEN}b{IMAGE}") == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
        {"type": "image"},
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            asked("<image> and <image>?", images=[picture()]),
            "2 places for images of the row's own columns, and there is 1 image",
        ),
        (
            asked("<image>?", images=[picture(), picture(2)]),
            "1 place for images of the row's own columns, and there are 2 images",
        ),
        (asked("<image>?"), "1 place .* there are 0 images"),
        (asked([{"type": "image"}, "?"], images=[None]), r"images\[0\] is null"),
        (asked("<image>?", images=["https://host/a.png"]), r"images\[0\] is the address"),
        (
            asked([{"type": "image_url", "image_url": {"url": "http://host/a.png"}}, "?"]),
            r"content\[0\] is the address",
        ),
        (asked([{"type": "image", "url": "data:image/png;base64,???"}, "?"]), "data:image/png;base64"),
        (asked("<image>?", images=["nowhere.png"]), "'nowhere.png' cannot be read: No such file"),
        (asked("<image>?", images=[{"bytes": b"no image", "path": "a.png"}]), "in no format that Pillow knows"),
        (asked("<image>?", images=[{"bytes": b"", "path": "a.png"}]), r"is empty \(0 bytes\)"),
        (asked([{"type": "video", "video": "a.mp4"}, "?"]), "of the type 'video'"),
        (asked("What is <|image_pad|>?"), r"writes 1 image token '<\|image_pad\|>' for messages, which has 0 images"),
        (asked("?", images=[picture()], image=picture(2)), "images and image both hold images"),
        (
            asked([{"type": "image", "image": picture(size=(900, 2))}, "?"]),
            "has 900 x 2 pixels, and Qwen2VLImageProcessor",
        ),
        ({"image": picture(), "other": 1}, "hold no training text"),
        (
            {
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<image>"}],
                "image": picture(),
            },
            "a message of the assistant with an image",
        ),
        ({"messages": [{"role": "assistant", "content": "Yes."}], "image": picture()}, "no message names a place"),
    ],
)
def test_refused_rows(qwen: ImageTextTask, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        qwen.encode(row)
    assert caught.value.expected and caught.value.do


def test_damaged_and_gigantic_images(qwen: ImageTextTask) -> None:
    """Nothing is decoded before its size is known; a damaged file is found when rows are prepared."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(out, "PNG")
    with pytest.raises(Unreadable, match=r"10000 x 10000 pixels, 100 million"):
        qwen.encode(asked("<image>?", images=[out.getvalue()]))
    whole = vision.picture(4, size=(64, 64), kind="JPEG")
    [example] = qwen.encode(asked("<image>?", images=[whole[:-300]]))
    with pytest.raises(Unreadable, match=r"images\[0\] cannot be decoded"):
        qwen.examine(example)
    encoder = encoder_of(qwen, [], 512, "drop", row_name=lambda number: f"row {number}", unreadable="skip", workers=2)
    rows = [asked("<image>?", images=[whole[:-300]]), asked("<image>?", images=[whole])]
    kept = [examples for _, examples in encoder.all_examples(rows)]
    assert [len(examples) for examples in kept] == [0, 1] and encoder.counts.unreadable == 1


def test_long_examples_keep_images_whole(qwen: ImageTextTask) -> None:
    [example] = qwen.encode(
        asked(
            [{"type": "image"}, {"type": "text", "text": "x" * 40}, {"type": "image"}], images=[picture(1), picture(2)]
        )
    )
    (_, first), (start, stop) = example[SPANS].tolist()
    for capacity, kept, images in (
        (stop - 1, start, 1),
        (start, start, 1),
        (stop, stop, 2),
        (first - 1, int(example[SPANS][0][0]), 0),
    ):
        [cut] = qwen.fitted(example, capacity, "truncate", counts := Counts())
        assert (len(cut["input_ids"]), len(cut["labels"]), len(cut[SPANS]), counts.truncated) == (kept, kept, images, 1)
        ready = qwen.transform(cut, DRAWN, is_trained=True)
        assert sum(name.startswith("pixels:") for name in ready) == (2 if images else 0)
    assert qwen.fitted(example, stop, "drop", Counts()) == []
    with pytest.raises(DataError, match=r"batch\.sequence_length"):
        qwen.fitted(example, stop, "error", Counts())


def test_a_changed_file_is_noticed(qwen: ImageTextTask) -> None:
    [example] = qwen.encode(asked("<image>?", images=[picture(1, size=(16, 16))]))
    [other] = qwen.encode(asked("<image>?", images=[picture(1, size=(32, 32))]))
    changed: Example = {**example, **{name: other[name] for name in ("images", "image_lengths", "image_names")}}
    with pytest.raises(ModelError, match="16 image tokens for its pixels, and 4 for an image of the size"):
        qwen.transform(changed, DRAWN, is_trained=True)


def test_what_is_shown(qwen: ImageTextTask) -> None:
    shown = qwen.show(qwen.encode(ROWS[2])[0])
    text = "".join(part for part, _ in shown.parts)
    assert text.count("<|image_pad|>") == 2 and "2 images of" in shown.heading
    assert any("vision tower stays as it is" in line for line in qwen.remarks(ROWS))
    assert not any("name no place" in line for line in qwen.remarks(ROWS))
    assert any("name no place" in line for line in qwen.remarks([asked("?", images=[picture()])]))


def test_ends_of_answers_are_found_without_reading_images(qwen: ImageTextTask) -> None:
    rows = [asked("<image>?", images=["not-there.png"])] * 3
    assert qwen.stop_tokens(rows) == (qwen.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


# Checkpoints


def test_a_processor_without_its_video_part(folders: dict[str, Path], tmp_path: Path) -> None:
    """It is saved under its own name; settings of videos that the checkpoint has stay with it."""
    source = folders["qwen2_5_vl"]
    task = task_of(source)
    task.processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    again = processors.load_processor(Model(path=str(source), tokenizer=str(tmp_path)))
    assert processor_hash(again) == processor_hash(task.processor)
    assert task.files(None, Batch(global_size=1, sequence_length=64)) == {}
    (tmp_path / "video_preprocessor_config.json").write_text('{"fps": 2}')
    assert processors.video_settings(tmp_path) == {"video_preprocessor_config.json": {"fps": 2}}


def test_what_changes_the_identity_of_prepared_rows(folders: dict[str, Path]) -> None:
    def changed(change: Any) -> str:
        processor = processors.load_processor(Model(path=str(folders["llava"])))
        change(processor)
        return processor_hash(processor)

    def add_token(processor: Any) -> None:
        processor.tokenizer.add_tokens(["<more>"])

    found = [
        changed(lambda _: None),
        changed(add_token),
        changed(lambda processor: setattr(processor, "patch_size", 12)),
        changed(lambda processor: setattr(processor.image_processor, "do_normalize", False)),
        changed(lambda processor: setattr(processor, "chat_template", "{{ messages }}")),
    ]
    assert len(set(found)) == len(found) and changed(lambda _: None) == found[0]


def test_refused_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    text = tiny.save(tiny.llama(tokenizer), tokenizer, tmp_path / "text")
    with pytest.raises(ModelError, match="has no processor"):
        processors.load_processor(Model(path=str(text)))
    task = task_of(folders["llava"])
    config = load_config(Model(path=str(folders["llava"])), vocabulary_size=None, overrides={})
    config.image_token_id = 5
    with pytest.raises(ModelError, match=r"'<image>', has the id \d+, and the model's config says image_token_id=5"):
        task.meet(config, Batch(global_size=1, sequence_length=64))
    config.image_token_id = task.processor.image_token_id
    with pytest.raises(ModelError, match=r"batch\.sequence_length=4096 is longer than the model's 1024 positions"):
        task.meet(config, Batch(global_size=1, sequence_length=4096))
    with pytest.raises(ModelError, match="the model is a llama"):
        task.meet(tiny.llama(tokenizer).config, Batch(global_size=1, sequence_length=64))
    task.tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("message['content']", "message['content'][0]['text']")
    with pytest.raises(DataError, match="writes 0 image tokens"):
        task.encode(asked([{"type": "text", "text": "?"}, {"type": "image"}], images=[picture()]))


PARTS = {
    "llava": ("language_model", "vision_tower", "multi_modal_projector"),
    "qwen3_vl": ("language_model", "visual", "visual"),
    "idefics3": ("text_model", "vision_model", "connector"),
}
"""Where the language model, the tower and the projector are."""


def with_adapters(folder: Path, **fields: Any) -> set[str]:
    """The parts that get adapters."""
    task, config = task_of(folder, **fields), load_config(Model(path=str(folder)), vocabulary_size=None, overrides={})
    frozen_in = partial(task.frozen, beside_adapters=True)
    plan = plan_adapters(task.auto_class, config, LoRA(rank=2), trains_head=False, frozen_in=frozen_in)
    return {name.split(".")[1] for name in plan.targets}


def trained(folder: Path, **fields: Any) -> set[str]:
    """The parts that are trained where all weights are, but for the head."""
    network = AutoModelForImageTextToText.from_pretrained(folder)
    task_of(folder, **fields).prepare(network)
    return {name.split(".")[1] for name, each in network.named_parameters() if each.requires_grad} - {"weight"}


@pytest.mark.parametrize("family", PARTS)
def test_which_weights_are_trained(family: str, folders: dict[str, Path]) -> None:
    """Adapters stand in the language model alone unless a part is to be trained; all weights but the tower's otherwise."""
    folder, (language, tower, projector) = folders[family], PARTS[family]
    assert with_adapters(folder) == {language}
    assert with_adapters(folder, freeze_projector=False) == {language, projector}
    assert with_adapters(folder, freeze_vision_tower=False) == {language, tower}
    assert trained(folder) == {language, projector}
    assert trained(folder, freeze_projector=True) == {language}
    assert trained(folder, freeze_vision_tower=False) == {language, projector, tower}


def test_refused_recipes() -> None:
    def recipe(**fields: Any) -> Recipe:
        return Recipe(data=Data(train="a.parquet"), batch=Batch(global_size=1), steps=2, **fields)

    scratch = Model(architecture="llava", weights="random", tokenizer="somewhere")
    with pytest.raises(ToolkitError, match=r"freeze_vision_tower=True with model\.weights='random'"):
        recipe(model=scratch, task=ImageTextToText())
    recipe(model=scratch, task=ImageTextToText(freeze_vision_tower=False))
    with pytest.raises(RecipeError, match="names one twice"):
        ImageTextToText(scores=("rouge", "rouge"))
    with pytest.raises(RecipeError, match="train_on='all'"):
        ImageTextToText(scores=("rouge",), train_on="all")
    with pytest.raises(RecipeError, match=r"'exact_match' in task\.scores"):
        ImageTextToText().check_metric("exact_match")


def test_scores() -> None:
    task = ImageTextToText(scores=("exact_match", "rouge"))
    records = [{"prediction": " A red\nball", "reference": "a red ball"}, {"prediction": "blue", "reference": "green"}]
    from toolkit.tasks.vision_language.answers import answer_metrics

    found = answer_metrics(records, task.scores)
    assert (
        found["exact_match"] == 0.5
        and found["rouge1"] == 0.5
        and set(found) == set(task.metrics) - {"loss", "perplexity"}
    )
