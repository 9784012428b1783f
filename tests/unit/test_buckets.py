"""Buckets and limits follow the model: what is rendered for which size, what is said of it, and what a check makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.architectures import tiny_config
from tests.launch.shrink import ROOT
from tests.unit.test_check_verb import checked
from toolkit.cli.launcher_config import check_launcher_config
from toolkit.ds_config.explain import explain_size
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.model_size import LARGEST_BUCKET, LEAST_BUCKET, ModelSize
from toolkit.ds_config.render import follows_model, render
from toolkit.ds_config.target import Target
from toolkit.models.model_size import model_size
from toolkit.recipe import Batch, Data, Model, Parallel, Recipe
from toolkit.recipe.load import load_recipe

LLAMA_1B = ModelSize(layer=60_821_504, longest_vector=2048)
SMALL = ModelSize(layer=3_000_001, longest_vector=576)


def recipe(stage: int, **parallel: Any) -> Recipe:
    return Recipe(
        model=Model(path="m"),
        data=Data(train="d"),
        batch=Batch(global_size=2, micro_size=1),
        parallel=Parallel(zero_stage=stage, **parallel),
        steps=2,
    )


def zero(asked: Recipe, size: ModelSize, device: Any = "cpu") -> dict[str, Any]:
    found: dict[str, Any] = render(asked, Target(2, device), size)["zero_optimization"]
    return found


def test_a_bucket_is_a_layer_within_bounds() -> None:
    assert zero(recipe(2), LLAMA_1B)["reduce_bucket_size"] == LARGEST_BUCKET
    assert zero(recipe(2), SMALL)["reduce_bucket_size"] == zero(recipe(2), SMALL)["allgather_bucket_size"] == 3_000_002
    assert zero(recipe(2), ModelSize(10, 2))["reduce_bucket_size"] == LEAST_BUCKET
    assert zero(recipe(2, reduce_bucket_size=4000), SMALL)["reduce_bucket_size"] == 4000


def test_stage_3_gathers_two_layers_and_keeps_vectors() -> None:
    found = zero(recipe(3), SMALL)
    assert found["stage3_max_live_parameters"] == 2 * SMALL.layer
    assert found["stage3_max_reuse_distance"] == SMALL.layer
    assert found["stage3_prefetch_bucket_size"] <= SMALL.layer + 1
    assert SMALL.longest_vector < found["stage3_param_persistence_threshold"] < 2 * SMALL.longest_vector
    assert zero(recipe(3, param_persistence_threshold=7), SMALL)["stage3_param_persistence_threshold"] == 7


@pytest.mark.parametrize(("device", "pipeline", "overlaps"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False)])
def test_communication_overlaps_where_there_is_a_stream_for_it(device: str, pipeline: int, overlaps: bool) -> None:
    assert zero(recipe(1, pipeline=pipeline), SMALL, device)["overlap_comm"] is overlaps
    if pipeline == 1:
        assert zero(recipe(1, overlap_comm=not overlaps), SMALL, device)["overlap_comm"] is not overlaps


def test_sizes_are_counted_on_the_model() -> None:
    config = tiny_config("llama")
    model = AutoModelForCausalLM.from_config(config)
    size = model_size(AutoModelForCausalLM, config, {})
    assert size.layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert size.longest_vector == config.hidden_size


@pytest.mark.parametrize(
    "parallel",
    [
        {"zero_stage": 1},
        {"zero_stage": 3},
        {"zero_stage": 3, "reduce_bucket_size": 8, "param_persistence_threshold": 9},
    ],
)
def test_what_follows_the_model_is_listed(parallel: dict[str, Any]) -> None:
    """Two renderings differ in nothing else."""
    asked = recipe(**{"stage": parallel["zero_stage"], **{k: v for k, v in parallel.items() if k != "zero_stage"}})
    one, other = zero(asked, LLAMA_1B), zero(asked, ModelSize(layer=10_000, longest_vector=32))
    assert {f"zero_optimization.{key}" for key in one if one[key] != other[key]} == {
        key for key in follows_model(asked) if key.removeprefix("zero_optimization.") in one
    }


def test_what_follows_the_model_is_said() -> None:
    def said(asked: Recipe) -> list[str]:
        return explain_size(asked, render(asked, Target(2, "cpu", bf16_is_native=False), SMALL), SMALL)

    assert said(recipe(0)) == []
    assert said(recipe(2)) == ["ZeRO: buckets of 3,000,002 elements, as the largest layer has 3,000,001"]
    assert said(recipe(2, reduce_bucket_size=8)) == []
    assert said(recipe(3, reduce_bucket_size=8)) == [
        "ZeRO: at most 6,000,002 parameters gathered at a time, those of fewer than 577 elements always, "
        "as the largest layer has 3,000,001"
    ]


def test_the_configuration_of_a_run_agrees_with_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "recipes/sft_smollm2_zero3.py"
    asked = load_recipe(path)
    config = render(asked, assumed_target(asked), SMALL)
    assert config != render(asked, assumed_target(asked))
    ran = tmp_path / "ds_config.json"
    ran.write_text(json.dumps(config))
    assert checked(capsys, str(ran), "--recipe", str(path), "--strict")[0] == 0
    check_launcher_config(render(asked, assumed_target(asked)), ran, file=asked)
