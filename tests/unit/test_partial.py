"""Loading a part of a checkpoint: the right numbers, no more bytes than wanted, whatever the names on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.architectures import tiny_config
from toolkit.errors import ModelError
from toolkit.models import partial
from toolkit.models.partial import load_part, place
from toolkit.models.shards import Shard
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut

RANGES = [(0, 1), (1, 3), (3, 4)]


def whole(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=torch.float32)


def stage(config: PretrainedConfig, number: int) -> nn.Module:
    return part_of(config, RANGES[number])


def part_of(config: PretrainedConfig, layers: tuple[int, int]) -> nn.Module:
    built = build_skeleton(AutoModelForCausalLM, config)
    cut(built, layers)
    return built


def check(part: nn.Module, model: nn.Module) -> None:
    expected = model.state_dict()
    for name, value in part.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
        assert value.dtype == expected[name].dtype


@pytest.fixture
def transformers_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the direct way may be taken."""
    monkeypatch.delattr(partial, "load_weights")


@pytest.mark.usefixtures("transformers_stays_out")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "apertus"])
@pytest.mark.parametrize("files", [1, 5])
def test_every_stage_gets_its_weights(kind: str, files: int, tmp_path: Path) -> None:
    """Also persistent buffers (apertus) and tied weights (gpt2), from one file and from several."""
    model = whole(kind)
    size = sum(value.numel() * 4 for value in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=size // files + 4096)
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    for number in range(3):
        part = stage(model.config, number)
        assert load_part(part, str(tmp_path)) == []
        check(part, model)


@pytest.mark.usefixtures("transformers_stays_out")
def test_sixteen_bit_checkpoints_become_fp32(tmp_path: Path) -> None:
    model = whole("llama")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    part = stage(model.config, 1)
    load_part(part, str(tmp_path))
    check(part, model.float())


@pytest.mark.parametrize("kind", ["apertus", "mixtral"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_parameters_come_in_the_format_of_the_run(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    """Read directly and by way of transformers (mixtral); persistent buffers, which DeepSpeed does not round, stay fp32."""
    model = whole(kind).to(stored)
    model.save_pretrained(tmp_path)
    part = stage(model.config, 1)
    assert load_part(part, str(tmp_path), dtype=torch.bfloat16) == []
    expected = model.state_dict()
    for name, parameter in part.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, expected[name].bfloat16()), name
    persistent = part.state_dict().keys() - {name for name, _ in part.named_parameters(remove_duplicate=False)}
    assert (kind == "apertus") == bool(persistent)
    for name in persistent:
        assert torch.equal(part.get_buffer(name), expected[name].float()), name


@pytest.mark.usefixtures("transformers_stays_out")
def test_shards_hold_their_elements(tmp_path: Path) -> None:
    """Two spans along rows, one along columns, on top of a stage; marks on parameters stay."""
    model = whole("llama")
    model.save_pretrained(tmp_path)
    up, down = (f"model.layers.1.mlp.{name}.weight" for name in ("up_proj", "down_proj"))
    shards = {up: Shard((48, 32), 0, ((0, 8), (40, 8))), down: Shard((32, 48), 1, ((16, 16),))}
    part = stage(model.config, 1)
    part.get_parameter(up).tensor_model_parallel = True  # type: ignore[attr-defined]
    load_part(part, str(tmp_path), shards)
    rows, columns = model.get_parameter(up), model.get_parameter(down)
    assert torch.equal(part.get_parameter(up), torch.cat([rows[:8], rows[40:]]))
    assert torch.equal(part.get_parameter(down), columns[:, 16:32])
    assert part.get_parameter(down).is_contiguous()
    assert part.get_parameter(up).tensor_model_parallel is True  # type: ignore[attr-defined]
    assert torch.equal(shards[up].cut(rows), part.get_parameter(up))


@pytest.mark.parametrize("kind", ["mixtral", "minimax", "glm4_moe_lite"])
def test_converted_checkpoints(kind: str, tmp_path: Path) -> None:
    """Experts lie one by one on disk and as one tensor in the module; a stage and a shard of it get the right ones."""
    model = whole(kind)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert any(re.search(r"experts\.\d+\.", name) for name in stored)
    experts = "model.layers.1.mlp.experts.down_proj"
    value = model.get_parameter(experts)
    shard = Shard(tuple(value.shape), 2, ((4, 4),))
    for shards in ({}, {experts: shard}):
        part = stage(model.config, 1)
        assert load_part(part, str(tmp_path), shards) == []
        if shards:
            assert torch.equal(part.get_parameter(experts), value[:, :, 4:8])
            place(part, experts, value)
        check(part, model)
    assert not any(parameter.is_meta for parameter in part.parameters())


@pytest.mark.usefixtures("transformers_stays_out")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_checkpoint_of_the_base_model(kind: str, tmp_path: Path) -> None:
    """Its names lack the prefix; a tied head needs nothing more."""
    model = whole(kind, tie_word_embeddings=True)
    model.base_model.save_pretrained(tmp_path)
    for number in range(3):
        part = stage(model.config, number)
        assert load_part(part, str(tmp_path)) == []
        check(part, model)


def test_missing_weights_are_named_and_left_to_be_drawn(tmp_path: Path) -> None:
    model = whole("llama", tie_word_embeddings=False)
    model.base_model.save_pretrained(tmp_path)
    first, last = stage(model.config, 0), stage(model.config, 2)
    assert load_part(first, str(tmp_path)) == []
    check(first, model)
    assert load_part(last, str(tmp_path)) == ["lm_head.weight"]
    assert last.get_parameter("lm_head.weight").is_meta


def test_a_whole_skeleton_loads_too(tmp_path: Path) -> None:
    model = whole("llama")
    model.save_pretrained(tmp_path)
    skeleton = build_skeleton(AutoModelForCausalLM, model.config)
    assert load_part(skeleton, str(tmp_path)) == []
    check(skeleton, model)


def test_bad_checkpoints(tmp_path: Path) -> None:
    model = whole("llama")
    part = stage(model.config, 1)
    with pytest.raises(ModelError, match="its model cannot be loaded"):
        load_part(part, str(tmp_path))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: weights[name][:40].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="its model cannot be loaded"):
        load_part(part, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="its model cannot be loaded"):
        load_part(part, str(tmp_path))


def peak_rss() -> int:
    """Largest resident memory of this process since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure the peak")
@pytest.mark.parametrize(("kind", "rows"), [("llama", 1), ("llama", 4), ("mixtral", 1)])
def test_memory_is_about_the_share(kind: str, rows: int, tmp_path: Path) -> None:
    """A quarter of a 200 MB checkpoint, a quarter of its rows, a quarter that has to be converted.

    Read directly, one tensor at a time comes on top of what is held; converting keeps the pages of the file and the
    parts of one tensor besides.
    """
    width = {"llama": 4096, "mixtral": 1024}[kind]
    model = whole(kind, hidden_size=512, intermediate_size=width, num_hidden_layers=8)
    size = sum(value.numel() * 4 for value in model.state_dict().values())
    assert size > 200e6
    model.save_pretrained(tmp_path)
    config, ranges = model.config, balance(model, 4)
    del model
    part = part_of(config, ranges[1])
    shapes = {name: tuple(p.shape) for name, p in part.named_parameters() if rows > 1 and p.shape[0] == width}
    shards = {name: Shard(shape, 0, ((0, shape[0] // rows),)) for name, shape in shapes.items()}
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_rss()
    assert load_part(part, str(tmp_path), shards) == []
    held = sum(parameter.numel() * 4 for parameter in part.parameters())
    assert held < size / 3.9
    largest = max(parameter.numel() * 4 for parameter in part.parameters())
    allowed = 2 * held + 2 * largest if kind == "mixtral" else 1.3 * held
    assert peak_rss() - before < allowed + 8e6


def test_index_names_files_in_the_directory(tmp_path: Path) -> None:
    model = whole("llama")
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    for file in set(index.values()):
        if not any(index[name] == file for name in index if ".layers.0." in name or "embed" in name):
            (tmp_path / file).unlink()
    part = stage(model.config, 0)
    assert load_part(part, str(tmp_path)) == []
    check(part, model)
