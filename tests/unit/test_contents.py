"""A checkpoint's files against the model: what is left out, what is tied in name only, what cannot be read and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.architectures import tiny_config
from toolkit.errors import ModelError
from toolkit.models.config import load_config
from toolkit.models.contents import compare, settle
from toolkit.models.files import check_weights
from toolkit.models.loading import load_tokenizer
from toolkit.models.model_size import model_size
from toolkit.models.partial import load_part
from toolkit.models.random_weights import RandomWeights
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.weight_files import weight_files
from toolkit.recipe import Model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


def checkpoint(kind: str, directory: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=torch.float32).save_pretrained(directory)
    return directory


def edit(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Add, replace or remove (None) tensors of model.safetensors; "__" stands for a dot."""
    held = load_file(directory / "model.safetensors")
    for name, value in tensors.items():
        if value is None:
            del held[name.replace("__", ".")]
        else:
            held[name.replace("__", ".")] = value
    save_file(held, directory / "model.safetensors", {"format": "pt"})


def split(held: dict[str, torch.Tensor], directory: Path, name: str) -> None:
    """Write `held` as two files of the form of `name`, "model.safetensors" or "pytorch_model.bin", with their index."""
    stem, suffix = name.split(".")
    names = sorted(held)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        tensors = {key: held[key] for key in part}
        if suffix == "bin":
            torch.save(tensors, directory / file)
        else:
            save_file(tensors, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FORMS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "old",
)


def rewrite(directory: Path, form: str) -> None:
    """Turn model.safetensors into one of FORMS; "old" is pytorch_model.bin as PyTorch wrote it before 1.6."""
    if form == "model.safetensors":
        return
    held = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    if form.endswith(".index.json"):
        split(held, directory, form.removesuffix(".index.json"))
    else:
        torch.save(held, directory / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old")


def differences(directory: Path, kind: Any = AutoModelForCausalLM) -> tuple[Any, list[str]]:
    config = AutoConfig.from_pretrained(directory)
    return config, settle(kind, config, str(directory), compare(kind, config, str(directory)))


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "qwen3_moe", "gemma3_text", "apertus", "deepseek_v3", "opt", "mamba"]
)
def test_a_models_own_checkpoint_has_no_differences(kind: str, tmp_path: Path) -> None:
    """Tied heads, buffers, experts that are stored one by one, names with and without a prefix."""
    checkpoint(kind, tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    config, lines = differences(tmp_path)
    assert lines == [] and config.to_dict() == before


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_head_under_a_tied_flag(form: str, tmp_path: Path) -> None:
    """Both are trained, as transformers loads them; the config says so from then on, and so do parts of the model."""
    checkpoint("llama", tmp_path, **TIED)
    head = torch.randn(96, 32)
    edit(tmp_path, lm_head__weight=head)
    rewrite(tmp_path, form)
    check_weights(str(tmp_path))
    config, lines = differences(tmp_path)
    assert config.tie_word_embeddings is False
    assert len(lines) == 1 and "holds lm_head.weight and model.embed_tokens.weight with different values" in lines[0]
    tokens = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(tokens).logits
        ours = AutoModelForCausalLM.from_pretrained(tmp_path, config=config).eval()(tokens).logits
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
    stage = build_skeleton(AutoModelForCausalLM, config)
    cut(stage, (2, 4))
    assert load_part(stage, str(tmp_path)) == []
    torch.testing.assert_close(stage.state_dict()["lm_head.weight"], head, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_copy_under_a_tied_flag_is_no_difference(form: str, tmp_path: Path) -> None:
    checkpoint("llama", tmp_path, **TIED)
    edit(tmp_path, lm_head__weight=load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].clone())
    rewrite(tmp_path, form)
    config, lines = differences(tmp_path)
    assert lines == [] and config.tie_word_embeddings is True


def test_a_tied_head_stored_in_the_place_of_the_embedding(tmp_path: Path) -> None:
    """transformers takes either name; so does every pipeline stage."""
    checkpoint("llama", tmp_path, **TIED)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].clone()
    edit(tmp_path, lm_head__weight=embedding, model__embed_tokens__weight=None)
    config, lines = differences(tmp_path)
    assert lines == []
    for layers in ((0, 2), (2, 4)):
        stage = build_skeleton(AutoModelForCausalLM, config)
        cut(stage, layers)
        assert load_part(stage, str(tmp_path)) == []
        torch.testing.assert_close(stage.state_dict()["model.embed_tokens.weight"], embedding, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_the_model_leaves_out_are_named(form: str, tmp_path: Path) -> None:
    checkpoint("llama", tmp_path)
    extra = {f"model__layers__0__adapter_{letter}": torch.ones(2) for letter in "abcd"}
    edit(tmp_path, **extra)
    rewrite(tmp_path, form)
    _, lines = differences(tmp_path)
    assert lines == [
        f"left out of {tmp_path}: model.layers.0.adapter_a, model.layers.0.adapter_b, model.layers.0.adapter_c and 1 more "
        "(the model has no such weights)"
    ]


def test_a_language_models_head_is_left_out_of_a_classifier(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path, tie_word_embeddings=False)
    _, lines = differences(tmp_path, AutoModelForSequenceClassification)
    assert lines == [f"left out of {tmp_path}: lm_head.weight (the model has no such weights)"]


def test_a_new_head_is_no_excuse_for_a_missing_layer(tmp_path: Path) -> None:
    """A weight of a head may not be there; another one is missing whether or not the head is made anew."""
    checkpoint("llama", tmp_path)
    config, _ = differences(tmp_path, AutoModelForSequenceClassification)

    def missing(remade: tuple[str, ...]) -> list[str]:
        skeleton = build_skeleton(AutoModelForSequenceClassification, config)
        return load_part(skeleton, str(tmp_path), remade=remade)

    assert missing(()) == missing(("score.weight",)) == ["score.weight"]
    edit(tmp_path, model__layers__1__mlp__up_proj__weight=None)
    assert missing(()) == missing(("score.weight",)) == ["model.layers.1.mlp.up_proj.weight", "score.weight"]


def test_an_architecture_that_cannot_be_built_as_it_is() -> None:
    model = Model(architecture="reformer", weights="random", tokenizer="none")
    config = load_config(model, vocabulary_size=9, overrides={})
    with pytest.raises(ModelError, match=r"no model can be built: If you want to use `ReformerModelWithLMHead`"):
        RandomWeights(AutoModelForCausalLM, config, 1)
    with pytest.raises(ModelError, match=r"no model can be built: If you want to use `ReformerModelWithLMHead`"):
        model_size(AutoModelForCausalLM, config, {})


def test_other_shapes_than_the_config_gives(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path)
    edit(tmp_path, model__norm__weight=torch.ones(7))
    with pytest.raises(ModelError) as caught:
        differences(tmp_path)
    assert caught.value.what == (
        f"{tmp_path}: model.norm.weight has shape (7,) in the files and (32,) in the model that its config describes"
    )
    assert "path" not in caught.value.do


def whole_and_shards(directory: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A directory with one whole file and the index and shards of other weights; returns transformers' model of it."""
    checkpoint("llama", directory)
    held = load_file(directory / "model.safetensors")
    split({name: value * 1.5 for name, value in held.items()}, directory, "model.safetensors")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), held


def test_an_index_beside_a_whole_file_is_not_read(tmp_path: Path) -> None:
    """transformers takes the whole file; so do all readers here, whether the shards are there or not."""
    stock, held = whole_and_shards(tmp_path)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    for _ in range(2):
        check_weights(str(tmp_path))
        config, lines = differences(tmp_path)
        part = build_skeleton(AutoModelForCausalLM, config)
        assert load_part(part, str(tmp_path)) == [] and lines == []
        for name, value in part.state_dict().items():
            torch.testing.assert_close(value, stock.state_dict()[name], rtol=0, atol=0)
            torch.testing.assert_close(value, held[name], rtol=0, atol=0)
        for shard in tmp_path.glob("model-*.safetensors"):
            shard.unlink()


def test_an_index_that_misplaces_a_tensor(tmp_path: Path) -> None:
    """transformers reads what is in the files; the index only says which files there are."""
    checkpoint("llama", tmp_path)
    rewrite(tmp_path, "model.safetensors.index.json")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    turned = dict(zip(weight_map, reversed(weight_map.values()), strict=True))
    index.write_text(json.dumps({"weight_map": turned}))
    config, lines = differences(tmp_path)
    assert lines == [] and load_part(build_skeleton(AutoModelForCausalLM, config), str(tmp_path)) == []


def test_files_of_pytorch_that_are_cut_off_or_missing(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path)
    rewrite(tmp_path, "pytorch_model.bin.index.json")
    first, second = sorted(tmp_path.glob("pytorch_model-*.bin"))
    first.write_bytes(first.read_bytes()[:-500])
    with pytest.raises(ModelError, match=f"{first.name} \\([\\d,]+ bytes\\) cannot be read: "):
        check_weights(str(tmp_path))
    torch.save([1, 2], first)
    with pytest.raises(ModelError, match="cannot be read: it holds a list, not tensors by name"):
        check_weights(str(tmp_path))
    torch.save({}, first)
    second.unlink()
    with pytest.raises(ModelError, match=f"lists {second.name}, which is not there"):
        check_weights(str(tmp_path))


def test_files_that_are_cut_off_or_missing(tmp_path: Path) -> None:
    whole = checkpoint("llama", tmp_path / "whole")
    check_weights(str(whole))
    file = whole / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model.safetensors \([\d,]+ bytes\) is cut off or damaged"):
        check_weights(str(whole))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    check_weights(str(tmp_path / "shards"))
    lost = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"lists {lost.name}, which is not there"):
        check_weights(str(tmp_path / "shards"))
    (tmp_path / "shards/model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        check_weights(str(tmp_path / "shards"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer(name: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "clone"
    shutil.copytree(tiny_llama_dir, directory)
    (directory / name).write_text(POINTER)
    model = Model(path=str(directory))
    for load in (load_tokenizer, lambda model: load_config(model, vocabulary_size=9, overrides={})):
        with pytest.raises(ModelError) as caught:
            load(model)
        assert caught.value.what == f"model.path={str(directory)!r}: {name} is a Git LFS pointer, not the file itself"
        assert caught.value.do == f"run `git lfs install && git -C {directory} lfs pull`"


def test_the_path_is_not_blamed_for_what_is_in_it(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama5"}))
    with pytest.raises(ModelError) as caught:
        load_config(Model(path=str(directory)), vocabulary_size=9, overrides={})
    assert "llama5" in caught.value.what and "update transformers" in caught.value.do
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no model: it has no config\.json"):
        load_config(Model(path=str(directory)), vocabulary_size=9, overrides={})
