"""Precision and offload_ratio in the rendered configuration: every key they write, and every combination they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.ds_config.check import check_config
from toolkit.ds_config.explain import explain
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Data, Model, Optimizer, Parallel, Precision, Recipe

CPU = Target(2, "cpu")
STAGES = Target(2, "cpu", model_ranks=2)
CUDA = Target(2, "cuda", fp8=True)
OLD_CUDA = Target(2, "cuda")
NO_COMPILER = Target(2, "cuda", compiler=False)
NO_BF16 = Target(2, "cpu", bf16_is_native=False)
BOTH = {"dtype": "bf16", "master_dtype": "bf16", "state_dtype": "bf16"}
MASTERS = {"dtype": "bf16", "master_dtype": "bf16"}
HOST = {"zero_stage": 3, "offload_optimizer": "cpu"}
HALF = HOST | {"offload_ratio": 0.5}


def recipe(precision: dict[str, Any], parallel: dict[str, Any] | None = None, **optimizer: Any) -> Recipe:
    return Recipe(
        model=Model(path="m"),
        data=Data(train="d.jsonl"),
        batch=Batch(global_size=8),
        precision=Precision(**precision),
        parallel=Parallel(**(parallel or {})),
        optimizer=Optimizer(**optimizer),
        steps=9,
    )


@pytest.mark.parametrize(
    ("made", "target", "keys"),
    [
        (recipe(BOTH), CPU, {"bf16": {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}),
        (recipe(BOTH, HOST), CUDA, {"bf16": {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}),
        (recipe(MASTERS, HOST), CUDA, {"bf16": {"bf16_master_weights_and_grads": True}}),
        (recipe(BOTH | {"accumulation_dtype": "bf16"}, {"zero_stage": 1, "pipeline": 2}), STAGES, {"zero_optimization": {"stage": 1}}),
        (recipe(BOTH | {"state_dtype": "8bit"}), CPU, {"bf16": {"bf16_optimizer_states": True}, "zero_allow_untested_optimizer": True}),
        (recipe({"dtype": "fp8"}), CUDA, {"bf16": {"enabled": True}, "communication_data_type": "bf16"}),
        (recipe({"dtype": "fp8", "accumulation_dtype": "bf16"}), CUDA, {"data_types": {"grad_accum_dtype": "bf16"}}),
        (recipe({"dtype": "bf16"}), CUDA, {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "bf16"}),
        (recipe({"dtype": "bf16"}), CPU, {"communication_data_type": "fp32"}),
        (recipe({"dtype": "fp16"}), CUDA, {"communication_data_type": "fp16"}),
        (recipe({"dtype": "fp32"}), CUDA, {"communication_data_type": "fp32"}),
        (recipe({"dtype": "fp32", "communication_dtype": "bf16"}, {"zero_stage": 0}), CPU, {"communication_data_type": "bf16"}),
        (recipe({"dtype": "bf16"}, {"sequence": 2}), CUDA, {"seq_parallel_communication_data_type": "bf16"}),
        (recipe({"dtype": "fp32", "tf32": True}), CUDA, {"communication_data_type": "fp32"}),
        (recipe({}, HALF), CUDA, {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}, "sub_group_size": 100_000_000}}),
        (recipe({}, HALF | {"offload_param": "cpu"}), CUDA, {"zero_optimization": {"offload_param": {"device": "cpu"}}}),
    ],
)  # fmt: skip
def test_keys(made: Recipe, target: Target, keys: dict[str, Any]) -> None:
    config = render(made, target)
    assert _holds(config, keys), config
    assert not check_config(config, target=target)
    explain(made, target, config)


def _holds(config: Any, keys: Any) -> bool:
    if not isinstance(keys, dict):
        return bool(config == keys)
    return all(name in config and _holds(config[name], value) for name, value in keys.items())


def test_defaults_write_no_new_key() -> None:
    config = render(recipe({}, HOST), CPU)
    assert set(config["bf16"]) == {"enabled", "check_grad_overflow"}
    assert "ratio" not in config["zero_optimization"]["offload_optimizer"]
    assert "optimizer" in config and "optimizer" not in render(recipe({"state_dtype": "8bit"}), CPU)


@pytest.mark.parametrize(
    ("made", "target", "what", "do"),
    [
        (recipe({"dtype": "bf16", "state_dtype": "bf16"}), CPU, "state_dtype='bf16' with precision.master_dtype='fp32'", "master_dtype='bf16'"),
        (recipe(BOTH | {"dtype": "auto"}), NO_BF16, "with parameters in fp32 (precision.dtype='auto' on this cpu device)", "precision.dtype='bf16'"),
        (recipe(MASTERS, type="lion"), CUDA, "with optimizer.type='lion'", "optimizer.type='adamw'"),
        (recipe(BOTH, {"zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "/x"}), CUDA, "'nvme'", "offload_optimizer='cpu'"),
        (recipe(MASTERS), CPU, "state_dtype='fp32' and parallel.offload_optimizer='none'", "state_dtype='bf16'"),
        (recipe(BOTH, {"zero_stage": 1}), CPU, "with ZeRO stage 1 and precision.accumulation_dtype='fp32'", "zero_stage=2"),
        (recipe(BOTH, {"zero_stage": 0}), CPU, "with ZeRO stage 1 and precision.accumulation_dtype='fp32'", "zero_stage=2"),
        (recipe(BOTH, {"zero_stage": 1, "pipeline": 2}), CPU, "with ZeRO stage 1", "set precision.accumulation_dtype='bf16'"),
        (recipe(BOTH, HOST, implementation="torch"), CUDA, "optimizer.implementation='torch'", "implementation='deepspeed'"),
        (recipe(BOTH, HOST), NO_COMPILER, "without a C++ compiler", "it needs g++"),
        (recipe({"state_dtype": "8bit"}, HOST), CUDA, "state_dtype='8bit' with parallel.offload_optimizer='cpu'", "state_dtype='fp32'"),
        (recipe({"state_dtype": "8bit"}, implementation="deepspeed"), CUDA, "with optimizer.implementation='deepspeed'", "'auto'"),
        (recipe({"dtype": "fp8"}), CPU, "precision.dtype='fp8' on this cpu device", "precision.dtype='bf16'"),
        (recipe({"dtype": "fp8"}), OLD_CUDA, "precision.dtype='fp8' on this cuda device", "precision.dtype='bf16'"),
        (recipe({"dtype": "bf16", "communication_dtype": "fp16"}), CUDA, "communication_dtype='fp16' with parameters in bf16", "'bf16'"),
        (recipe({"dtype": "fp32", "tf32": True}), CPU, "precision.tf32=True on a cpu device", "tf32=False"),
        (recipe({}, HALF, type="adam"), CUDA, "offload_ratio=0.5 with optimizer.type='adam'", "optimizer.type='adamw'"),
        (recipe({}, HALF), NO_COMPILER, "without a C++ compiler", "offload_ratio=1.0"),
        (recipe(MASTERS, HALF), CUDA, "offload_ratio=0.5 with precision.master_dtype='bf16' and precision.state_dtype='fp32'", "state_dtype='bf16'"),
    ],
)  # fmt: skip
def test_refusals(made: Recipe, target: Target, what: str, do: str) -> None:
    with pytest.raises(RecipeError) as caught:
        render(made, target)
    assert what in caught.value.what
    assert do in caught.value.do
