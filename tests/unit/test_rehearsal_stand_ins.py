"""What stands in for a checkpoint, for rows and for a device that are not on this host, and how that is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tiny import write_lines
from toolkit.engine import device
from toolkit.errors import DataError, ModelError, SourceAbsent
from toolkit.recipe import (
    Batch,
    Data,
    ImageClassification,
    MaskedLM,
    Model,
    Parallel,
    Precision,
    Recipe,
    RewardModel,
    Seq2Seq,
    SequenceClassification,
    SpeechCTC,
)
from toolkit.rehearsal.few_rows import write_few_rows
from toolkit.rehearsal.made_up import write_made_up
from toolkit.rehearsal.small_model import write_small_model
from toolkit.rehearsal.this_cpu import on_this_cpu
from toolkit.train.inputs import load_task


def recipe(task: Any = None, **sections: Any) -> Recipe:
    given = {"model": Model(path="m"), "data": Data(train="d.jsonl", packing=False), "batch": Batch(global_size=2)}
    return Recipe(**{**given, **({} if task is None else {"task": task}), **sections, "steps": 9})


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))


NAMES = [
    ("Qwen/Qwen3-8B", None, "Qwen3ForCausalLM"),
    ("openai-community/gpt2-xl", None, "GPT2LMHeadModel"),
    ("some/chat-7b", None, "LlamaForCausalLM"),
    ("google/flan-t5-xl", Seq2Seq(), "T5ForConditionalGeneration"),
    ("some/distilled-bart", Seq2Seq(), "BartForConditionalGeneration"),
    ("answerdotai/ModernBERT-base", MaskedLM(), "ModernBertForMaskedLM"),
    ("BAAI/bge-base-en-v1.5", SequenceClassification(), "BertForSequenceClassification"),
    ("some/judge", RewardModel(), "LlamaForSequenceClassification"),
    ("some/pictures", ImageClassification(image_size=32), "ViTForImageClassification"),
]


@pytest.mark.parametrize(("name", "task", "expected"), NAMES, ids=[name for name, _, _ in NAMES])
def test_an_architecture_is_told_by_the_name_of_the_checkpoint(
    name: str, task: Any, expected: str, tmp_path: Path
) -> None:
    batch = {"batch": Batch(global_size=2)}
    found = write_small_model(recipe(task, model=Model(path=name), **batch), tmp_path / "m", num_layers=2)
    assert found.name == expected and not found.is_whole
    told = json.loads((tmp_path / "m" / "config.json").read_text())["model_type"]
    assert found.stand_ins[-1] == (
        f"the architecture: {name!r} is not here, so a {told} of transformers' usual form stands in"
    )
    reads_text = task is None or not task.reads_media
    assert found.own_tokens != reads_text
    if reads_text:
        assert found.stand_ins[0] == f"the tokenizer: {name!r} is not here, so each byte of a text is a token"
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
        assert tokenizer.decode(tokenizer("Zoë, 東京")["input_ids"]) == "Zoë, 東京"
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_what_can_be_fetched_is_said_so(tmp_path: Path) -> None:
    found = write_small_model(recipe(model=Model(path="smollm2-135m-instruct")), tmp_path / "m", num_layers=2)
    assert all(" is not here (`toolkit fetch smollm2-135m-instruct`), so " in line for line in found.stand_ins)
    fetched = recipe(ImageClassification(), model=Model(path="efficientnet-lite0"))
    with pytest.raises(ModelError, match="checkpoint 'efficientnet-lite0' is not fetched yet"):
        write_small_model(fetched, tmp_path / "e", num_layers=2)


def test_a_model_that_no_rule_scales_is_trained_as_it_is_where_it_is_small(tmp_path: Path) -> None:
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = Model(architecture="resnet", weights="random", config=small)
    found = write_small_model(recipe(ImageClassification(), model=model), tmp_path / "m", num_layers=2)
    assert found.is_whole and found.name == "ResNetForImageClassification" and found.stand_ins == []
    large = model.model_copy(update={"config": {**model.config, "hidden_sizes": "[8, 4000]", "depths": "[1, 9]"}})
    with pytest.raises(ModelError, match="ResNetConfig cannot be scaled down") as failure:
        write_small_model(recipe(ImageClassification(), model=large), tmp_path / "l", num_layers=2)
    assert failure.value.do.endswith(", or start the recipe itself with a few --steps")


SOURCES = [
    ("none/rows.jsonl", "data.train='none/rows.jsonl' does not exist"),
    ("owner/rows", "data.train='owner/rows' is in no cache"),
    ("none/*.jsonl", "data.train='none/*.jsonl' matches no file"),
    ("python-docstrings", "data set 'python-docstrings' is not fetched yet (`toolkit fetch python-docstrings`)"),
]


@pytest.mark.parametrize(("source", "why"), SOURCES)
def test_rows_that_are_elsewhere(source: str, why: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    made = recipe(model=Model(path=str(tiny_llama_dir)), data=Data(train=source))
    found = write_few_rows(made, load_task(made), tmp_path / "rows")
    assert found.stand_ins == [f"the rows: {why}, so random ones in this task's usual columns stand in"]
    assert found.data.train == str(tmp_path / "rows" / "train" / "rows.jsonl") and found.said == []


def test_rows_that_give_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"text": ""}] * 4)
    made = recipe(model=Model(path=str(tiny_llama_dir)), data=Data(train=str(file)))
    with pytest.raises(DataError):
        write_few_rows(made, load_task(made), tmp_path / "rows")


def test_recordings_and_columns_of_several_classes_can_be_made_up(tmp_path: Path) -> None:
    absent = SourceAbsent("not here", expected="rows", do="get them")
    several = recipe(SequenceClassification(label_fields=("a", "b")))
    data, task, _ = write_made_up(several, tmp_path / "classes", absent)
    assert task.problem_type == "multi_label_classification"
    assert isinstance(json.loads(Path(data.train).read_text().splitlines()[0])["label"], list)
    heard = recipe(SpeechCTC(), data=Data(train="d", evaluation="e", packing=False, overlong="drop"))
    data, _, _ = write_made_up(heard, tmp_path / "heard", absent)
    row = json.loads(Path(str(data.evaluation)).read_text().splitlines()[0])
    assert (Path(data.train).parent / row["audio"]).is_file()


def test_formats_and_places_that_this_host_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = device.target(1, wanted="auto")
    monkeypatch.setattr(device, "target", lambda *_, **__: replace(plain, fp16=False, bf16=True))
    monkeypatch.setattr(device, "swaps_to_disk", lambda: False)
    on_disk = Parallel(zero_stage=3, offload_optimizer="nvme", offload_param="cpu", nvme_path=str(tmp_path))
    said: list[str] = []
    found = on_this_cpu(recipe(precision=Precision(dtype="fp16", loss_scale_window=50), parallel=on_disk), said)
    assert said == [
        "precision.dtype='fp16' (this CPU does not compute in it; bf16 takes its place)",
        "offload to 'nvme' (no libaio here: apt-get install libaio-dev; 'cpu' takes its place)",
    ]
    assert (found.precision.dtype, found.parallel.offload_optimizer, found.parallel.nvme_path) == ("bf16", "cpu", None)
    unchanged = recipe(precision=Precision(dtype="fp32"))
    assert on_this_cpu(unchanged, said) is unchanged and len(said) == 2
