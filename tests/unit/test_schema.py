"""The schema's key tables against the installed DeepSpeed and torch, and what the schema says about bad files."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import textwrap
import time
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, get_args

import deepspeed
import pydantic
import pytest
import torch
from deepspeed.autotuning.config import DeepSpeedAutotuningConfig
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig, PassName
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.module_inject.auto_ep_config import parse_autoep_config
from deepspeed.module_inject.autotp_config import AutoTPConfig, AutoTPPresets
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
from deepspeed.runtime import config as runtime_config
from deepspeed.runtime import engine, lr_schedules
from deepspeed.runtime.config import DeepSpeedConfig, HybridEngineConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.tensor_parallel.config import TPConfig, TPTrainingConfig
from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from toolkit.ds_config import schema_data, schema_optimizers, schema_parallel, schema_schedules, schema_top, schema_zero
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.schema import check_schema
from toolkit.ds_config.schema_keys import Key, Section

TOP = schema_top.TOP


def section(path: str) -> Section:
    found: Key | Section = TOP
    for name in path.split(".") if path else []:
        assert isinstance(found, Section)
        found = found.keys[name]
    assert isinstance(found, Section)
    return found


MODELS: dict[str, type[pydantic.BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.zenflow": ZenFlowConfig,
    "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
    "fp16": DeepSpeedFP16Config,
    "bf16": DeepSpeedBF16Config,
    "tensor_parallel": TPTrainingConfig,
    "tensor_parallel.tp": TPConfig,
    "compile": CompileConfig,
    "hybrid_engine": HybridEngineConfig,
    "tensorboard": TensorBoardConfig,
    "csv_monitor": CSVConfig,
    "wandb": WandbConfig,
    "comet": CometConfig,
    "comms_logger": CommsLoggerConfig,
    "timers.throughput": DeepSpeedThroughputTimerConfig,
    "weight_quantization": WeightQuantConfig,
}


def test_the_tables_are_of_the_installed_version() -> None:
    assert deepspeed.__version__.split("+")[0] == schema_top.DEEPSPEED_VERSION


@pytest.mark.parametrize("path", MODELS)
def test_pydantic_sections_have_the_same_keys(path: str) -> None:
    fields = MODELS[path].model_fields
    names = set(fields) | {field.alias for field in fields.values() if field.alias}
    assert names == set(section(path).keys)


@pytest.mark.parametrize("path", MODELS)
def test_pydantic_sections_have_the_same_types(path: str) -> None:
    compared = 0
    for name, field in MODELS[path].model_fields.items():
        key = section(path).keys[name]
        plain = {bool: ("bool",), int: ("int", "count"), float: ("number",), str: ("text",), list: ("texts",)}
        for member in _members(field.annotation):
            annotation = typing.get_origin(member) or member
            if isinstance(key, Key) and not key.instead and annotation in plain:
                assert key.kind in plain[annotation] or key.choices, (path, name, key.kind, annotation)
                compared += 1
        nullable = type(None) in _members(field.annotation)
        if isinstance(key, Key) and not key.instead:
            assert key.nullable == nullable, (path, name)
    assert compared


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


class Recorder(dict[str, Any]):
    """A dict that remembers, per section, which keys DeepSpeed asked for."""

    asked: ClassVar[dict[str, set[str]]] = {}

    def __init__(self, path: str = "", values: dict[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.path = path

    def _note(self, key: object) -> None:
        Recorder.asked.setdefault(self.path, set()).add(str(key))

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def keys(self) -> Any:
        recorder = self

        class View(list[str]):
            def __contains__(self, key: object) -> bool:
                recorder._note(key)
                return super().__contains__(key)

        return View(super().keys())


PLAIN_SECTIONS = (
    "activation_checkpointing",
    "aio",
    "autotuning",
    "autotuning.model_info",
    "checkpoint",
    "checkpoint.parallel_write",
    "checkpoint.writer",
    "data_types",
    "expert_parallel",
    "flops_profiler",
    "torch_autocast",
    "optimizer",
    "scheduler",
    "timers",
)
"""Sections that DeepSpeed reads with dict.get, so that its own code says which keys there are."""


@pytest.fixture(scope="module")
def asked() -> dict[str, set[str]]:
    """Keys that DeepSpeedConfig asks for, per section."""
    Recorder.asked = {}
    tree = Recorder("", {"train_batch_size": 1})
    for path in PLAIN_SECTIONS:
        parent, _, name = path.rpartition(".")
        node: Recorder = tree if not parent else dict.__getitem__(tree, parent)
        values = {"enabled": False} if path in ("autotuning", "flops_profiler") else {}
        dict.__setitem__(node, name, Recorder(path, values))
    dict.__setitem__(dict.__getitem__(tree, "optimizer"), "type", "Adam")
    dict.__setitem__(dict.__getitem__(tree, "scheduler"), "type", "WarmupLR")
    DeepSpeedConfig(tree)
    parse_autoep_config(Recorder("expert_parallel", {"enabled": False}))
    AutoTPConfig.from_dict(Recorder("partition_config"))
    DeepSpeedAutotuningConfig({"autotuning": Recorder("autotuning", {"model_info": Recorder("autotuning.model_info")})})
    return Recorder.asked


def test_top_level_keys_are_the_ones_deepspeed_reads(asked: dict[str, set[str]]) -> None:
    read = asked[""] | {"sequence_parallel_size", "data_parallel_size"}
    assert read - {"max_grad_norm"} - set(TOP.removed) == set(TOP.keys)
    source = Path(deepspeed.__file__).read_text()
    assert '"sequence_parallel_size" in config and "data_parallel_size" in config' in source


def test_removed_keys_are_the_ones_deepspeed_refuses() -> None:
    assert set(TOP.removed) == set(runtime_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert set(schema_zero.ZERO.removed) == set(runtime_config._REMOVED_ZERO_CONFIG_KEYS)


@pytest.mark.parametrize("path", PLAIN_SECTIONS)
def test_plain_sections_have_the_keys_deepspeed_reads(path: str, asked: dict[str, set[str]]) -> None:
    # max_grad_norm is looked for in params only to warn; legacy keys of older files are not read at all.
    assert asked[path] == set(section(path).keys)


def test_partition_config_has_the_keys_deepspeed_reads(asked: dict[str, set[str]]) -> None:
    assert asked["partition_config"] == set(section("tensor_parallel.partition_config").keys)
    spec = _strings_got(AutoTPConfig.from_dict, "spec_dict")
    assert spec == set(schema_parallel.LAYER_SPEC.keys)


def _strings_got(function: Any, variable: str) -> set[str]:
    """Keys that the source of `function` passes to `variable`.get."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "get"
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == variable
        and isinstance(call.args[0], ast.Constant)
    }


def test_tensor_parallel_presets_are_deepspeeds() -> None:
    key = section("tensor_parallel").keys["preset_model"]
    assert isinstance(key, Key)
    assert all(AutoTPPresets.get_preset(str(name)) is not None for name in key.choices)
    methods = {name for name in vars(AutoTPPresets) if not name.startswith("_")} - {"get_preset", "llama_gqa"}
    assert methods == set(key.choices)


def _constants(module: Any, *prefixes: str) -> set[str]:
    return {
        value
        for name, value in vars(module).items()
        if isinstance(value, str) and name.startswith(prefixes) and not name.endswith(("_DEFAULT", "_FORMAT"))
    }


def test_data_efficiency_keys_are_among_deepspeeds_constants() -> None:
    from deepspeed.runtime.data_pipeline import constants

    known = _constants(constants, "DATA_", "CURRICULUM_", "DYNAMIC_", "RANDOM_LTD")
    used: set[str] = set()

    def walk(part: Section) -> None:
        for name, inner in part.keys.items():
            used.add(name)
            if isinstance(inner, Section):
                walk(inner)
        if part.each is not None:
            walk(part.each)

    walk(schema_data.DATA_EFFICIENCY)
    assert used <= known, used - known
    for prefix in ("DATA_SAMPLING", "DYNAMIC_BATCHING"):
        path = "data_efficiency.data_sampling" + (".dynamic_batching" if prefix == "DYNAMIC_BATCHING" else "")
        words = {word for word in _constants(constants, prefix) if word not in ("data_sampling", "dynamic_batching")}
        assert words <= set(section(path).keys) | {"linear", "dataloader"}, words


def test_pipeline_keys_are_the_ones_deepspeed_has() -> None:
    defaults = set(runtime_config.get_pipeline_config({}))
    source = inspect.getsource(sys.modules["deepspeed.runtime.pipe.engine"])
    assert defaults | {"use_reentrant"} == set(section("pipeline").keys)
    assert "self._config.pipeline['use_reentrant']" in source


CLASSES: dict[str, type] = {
    "FusedAdam": FusedAdam,
    "DeepSpeedCPUAdam": DeepSpeedCPUAdam,
    "DeepSpeedCPUAdagrad": DeepSpeedCPUAdagrad,
    "FusedLion": FusedLion,
    "DeepSpeedCPULion": DeepSpeedCPULion,
    "FusedLamb": FusedLamb,
}


@pytest.mark.parametrize("name", sorted(set(schema_optimizers.CLASS_PARAMS) - {"MuonWithAuxAdam"}))
def test_optimizer_parameters_are_the_class_arguments(name: str) -> None:
    built = CLASSES[name] if name in CLASSES else getattr(torch.optim, name.removeprefix("torch.optim."))
    arguments = set(list(inspect.signature(built.__init__).parameters)[2:])
    # The engine passes these itself, or refuses them in params.
    arguments -= {"adamw_mode", "adam_w_mode", "max_grad_norm"}
    if name == "DeepSpeedCPUAdam":
        arguments -= {"fp32_optimizer_states"}
    assert arguments == set(schema_optimizers.CLASS_PARAMS[name])


def test_muon_parameters_are_the_ones_the_engine_reads() -> None:
    reads = {*engine.DeepSpeedEngine._MUON_HALF_KEYS, *engine.DeepSpeedEngine._ADAM_HALF_KEYS}
    own = set(schema_optimizers.CLASS_PARAMS["MuonWithAuxAdam"])
    assert reads | {"muon_lr", "adam_lr", "per_head_muon", "foreach"} == own
    assert all(name in inspect.getsource(engine.DeepSpeedEngine) for name in ("muon_lr", "adam_lr"))


def test_every_optimizer_of_torch_and_deepspeed_is_known() -> None:
    classes = {
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in ("Optimizer", "Muon")
    }
    assert classes == set(schema_optimizers.TORCH_OPTIMIZERS) | {"LBFGS", "SparseAdam"}
    assert set(schema_optimizers.DEEPSPEED_OPTIMIZERS) == set(runtime_config.DEEPSPEED_OPTIMIZERS)


def test_every_schedule_of_torch_and_deepspeed_is_known() -> None:
    torch_names = {
        name
        for name, value in vars(torch.optim.lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.lr_scheduler.LRScheduler) and value.__name__ == name
    } - {"LRScheduler", "_LRScheduler"}
    own = set(lr_schedules.VALID_LR_SCHEDULES)
    assert torch_names | own == set(schema_schedules.SCHEDULERS) | set(schema_schedules.REFUSED_SCHEDULERS)


@pytest.mark.parametrize("name", schema_schedules.SCHEDULERS)
def test_schedule_parameters_are_the_class_arguments(name: str) -> None:
    built = getattr(lr_schedules, name) if hasattr(lr_schedules, name) else getattr(torch.optim.lr_scheduler, name)
    parameters = list(inspect.signature(built.__init__).parameters.values())[2:]
    table = schema_schedules.SCHEDULERS[name]
    assert {p.name for p in parameters} - {"scale_fn"} == set(table.keys)
    assert {p.name for p in parameters if p.default is inspect.Parameter.empty} == set(table.required)


def test_auto_is_allowed_where_hugging_face_fills_it_in() -> None:
    from transformers.integrations import deepspeed as bridge

    source = inspect.getsource(bridge.HfTrainerDeepSpeedConfig)
    marked: list[str] = []

    def walk(path: str, part: Section) -> None:
        for name, inner in part.keys.items():
            where = f"{path}.{name}" if path else name
            if isinstance(inner, Section):
                walk(where, inner)
            elif inner.auto:
                marked.append(where)

    walk("", TOP)
    for name, keys in schema_optimizers.CLASS_PARAMS.items():
        if name == "torch.optim.AdamW":
            marked += [f"optimizer.params.{key}" for key, value in keys.items() if value.auto]
    marked += [
        f"scheduler.params.{k}"
        for k, v in schema_schedules.SCHEDULERS["WarmupDecayLR"].keys.items()
        if isinstance(v, Key) and v.auto
    ]
    filled = set(re.findall(r'fill_(?:match|only)\(\s*"([^"]+)"', source))
    # accelerate fills in one more (accelerate/accelerator.py, _prepare_deepspeed).
    filled.add("zero_optimization.stage3_gather_16bit_weights_on_model_save")
    assert set(marked) == filled


def texts(config: dict[str, Any], **options: Any) -> list[str]:
    return [str(found) for found in check_schema(config, **options)]


def only(config: dict[str, Any], **options: Any) -> Finding:
    found = check_schema(config, **options)
    assert len(found) == 1, found
    return found[0]


def test_unknown_top_level_key_is_named_with_the_nearest() -> None:
    found = only({"zero_optimisation": {"stage": 2}})
    assert found.rule == "unknown-key" and found.where == "zero_optimisation"
    assert found.what == "unknown key zero_optimisation (did you mean 'zero_optimization'?)"
    assert found.expected == "a key that DeepSpeed 0.19.8 reads at the top level"
    assert found.do == "rename it"


def test_unknown_key_that_belongs_elsewhere() -> None:
    assert only({"sub_group_size": 10}).what == "unknown key sub_group_size (it belongs in zero_optimization)"
    found = only({"zero_optimization": {"stage": 1, "gradient_clipping": 1.0}})
    assert found.do == "move it: it belongs at the top level"


@pytest.mark.parametrize(
    "path",
    [
        "optimizer",
        "scheduler",
        "pipeline",
        "activation_checkpointing",
        "flops_profiler",
        "autotuning",
        "data_efficiency",
        "data_efficiency.data_sampling.dynamic_batching",
        "aio",
        "checkpoint",
        "checkpoint.writer",
        "data_types",
        "torch_autocast",
        "expert_parallel",
        "tensor_parallel.partition_config",
        "timers",
        "zero_optimization.offload_optimizer",
        "comet",
    ],
)
def test_unknown_keys_are_found_in_every_section(path: str) -> None:
    config: dict[str, Any] = {"surprise": 1}
    for name in reversed(path.split(".")):
        config = {name: config}
    wheres = [found.where for found in check_schema(config) if found.rule == "unknown-key"]
    assert wheres == [f"{path}.surprise"]


def test_removed_and_deprecated_keys_say_what_replaces_them() -> None:
    assert only({"amp": {"enabled": False}}).expected == (
        'instead: "bf16", "fp16" or "torch_autocast": Apex AMP was removed'
    )
    assert only({"bf16": {"enabled": True, "check_overflow": True}}).expected == 'instead: "check_grad_overflow"'
    found = only({"zero_optimization": {"stage": 2, "cpu_offload": True}})
    assert (found.rule, found.expected) == ("deprecated-key", 'instead: "offload_optimizer": {"device": "cpu"}')
    assert only({"bfloat16": {"enabled": True}}).rule == "deprecated-key"
    found = only({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "max_grad_norm": 1.0}}})
    assert (found.where, found.expected) == (
        "optimizer.params.max_grad_norm",
        'instead: "gradient_clipping" at the top level',
    )


@pytest.mark.parametrize(
    ("config", "what", "expected"),
    [
        ({"zero_optimization": {"stage": "2"}}, 'zero_optimization.stage="2"', "an integer >= 0 and <= 3"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage=true", "an integer >= 0 and <= 3"),
        ({"zero_optimization": 1}, "zero_optimization=1", "an object {...}"),
        ({"bf16": {"enabled": "yes"}}, 'bf16.enabled="yes"', "true or false"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled=1", "true or false"),
        ({"steps_per_print": "x"}, 'steps_per_print="x"', "an integer >= 1 or null"),
        ({"train_batch_size": "8"}, 'train_batch_size="8"', "an integer >= 1"),
        ({"train_micro_batch_size_per_gpu": 1.5}, "train_micro_batch_size_per_gpu=1.5", "an integer >= 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0", "an integer >= 1"),
        ({"gradient_clipping": -1}, "gradient_clipping=-1", "a number >= 0"),
        (
            {"communication_data_type": "float16"},
            'communication_data_type="float16"',
            'one of "fp32", "fp16", "bf16", or null',
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": 921.6}},
            "zero_optimization.reduce_bucket_size=921.6",
            "an integer >= 1",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}},
            "optimizer.params.betas=[0.9]",
            "a list of two numbers >= 0 and < 1",
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}},
            "scheduler.params.warmup_num_steps=0",
            "an integer >= 1",
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cosine"}}},
            'scheduler.params.warmup_type="cosine"',
            'one of "linear", "log"',
        ),
        *(
            (
                {"optimizer": {"type": "Adam", "params": {"betas": betas}}},
                f"optimizer.params.betas={betas}",
                "a list of two numbers >= 0 and < 1",
            )
            for betas in ([0.9, 1.0], [1.0, 0.9], [1, 0.9])
        ),
        (
            {"optimizer": {"type": "RMSprop", "params": {"alpha": 1.5}}},
            "optimizer.params.alpha=1.5",
            "a number >= 0 and <= 1",
        ),
        ({"optimizer": {"type": 3, "params": {}}}, "optimizer.type=3", "a string"),
        ({"expert_parallel": {"top_k": "all"}}, 'expert_parallel.top_k="all"', 'an integer >= 1 or "auto"'),
    ],
)
def test_wrong_types(config: dict[str, Any], what: str, expected: str) -> None:
    found = only(config)
    assert (found.rule, found.what, found.expected) == ("wrong-type", what, expected)
    assert found.do == f"correct the value of {found.where.rpartition('.')[2]!r}"


def test_large_integers_may_be_written_as_powers_of_ten() -> None:
    assert texts({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": 2e8}}) == []


def test_nested_layer_specs_are_checked() -> None:
    config = {"tensor_parallel": {"partition_config": {"layer_specs": [{"patterns": ["a"], "partition_typ": "row"}]}}}
    found = only(config)
    assert found.where == "tensor_parallel.partition_config.layer_specs[0].partition_typ"


def test_curriculum_metrics_have_free_names_and_checked_contents() -> None:
    metric = {"min_difficulty": 1, "max_difficulty": 9, "schedule_type": "fixed_linear", "dificulty_type": "value"}
    sampling = {"curriculum_learning": {"enabled": True, "curriculum_metrics": {"mine": metric}}}
    found = only({"data_efficiency": {"enabled": True, "data_sampling": sampling}})
    assert found.where.endswith("curriculum_metrics.mine.dificulty_type")
    assert "did you mean 'difficulty_type'" in found.what


def test_two_spellings_of_one_key() -> None:
    found = only({"zero_optimization": {"stage": 3, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2}})
    assert found.rule == "alias-twice"
    assert found.what.endswith("zero_optimization.prefetch_bucket_size are the same key")


def test_auto() -> None:
    config = {"train_batch_size": "auto"}
    assert only(config).what.startswith('train_batch_size="auto": only Hugging Face fills that in')
    assert "--training-args FILE.json" in only(config).do
    assert only(config).severity == "warning"
    assert texts(config, for_trainer=True) == []
    late = {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": "auto"}}
    assert only(late, for_trainer=True).what.endswith('"auto": Hugging Face does not fill that in and stops')
    assert only(late, for_trainer=True).severity == "error"
    assert only({"wall_clock_breakdown": "auto"}).what == 'wall_clock_breakdown="auto": nothing fills that in'
    own = {"zero_optimization": {"stage": 3, "zenflow": {"select_strategy": "auto", "update_interval": "auto"}}}
    assert texts(own) == []
    # Another "auto" says that the file is for Hugging Face.
    kinds = {found.severity: found.what for found in check_schema({**own, **config})}
    assert "but accelerate stops at it" in kinds["error"] and "train_batch_size" in kinds["warning"]


def test_all_that_is_left_auto_is_one_finding() -> None:
    found = only(
        {
            "train_batch_size": "auto",
            "bf16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
            "gradient_clipping": "auto",
            "steps_per_print": "auto",
        }
    )
    assert found.what.startswith('7 keys are "auto" (train_batch_size, bf16.enabled, ')
    assert (found.rule, found.severity, found.expected) == (
        "leftover-auto",
        "warning",
        "values, or the arguments that they come from",
    )


@pytest.mark.parametrize(
    ("config", "what", "do"),
    [
        (
            {"max_grad_norm": 1.0},
            'max_grad_norm (DeepSpeed: "gradient_clipping" at the top level)',
            "gradient_clipping",
        ),
        ({"fp16": {"fp16": True}}, "fp16.fp16: fp16 is that section", 'remove it (and write "enabled")'),
        (
            {"fp16": {"_comment": ""}},
            "fp16._comment: DeepSpeed refuses every key it does not know in fp16",
            "top level",
        ),
        ({"learning_rate": 1e-4}, 'learning_rate (DeepSpeed: "lr" in optimizer.params)', "optimizer.params"),
        ({"lr": 1e-4}, "unknown key lr (it belongs in optimizer.params)", "move it"),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9, "warmup_max_lr": 1e-4}}},
            'warmup_max_lr (DeepSpeed: "lr" in optimizer.params, which this schedule scales)',
            "optimizer.params",
        ),
        ({"aio": {"thread_count": 1}}, 'aio.thread_count (DeepSpeed: "intra_op_parallelism")', "intra_op_parallelism"),
        ({"a\n\x1b[31mb": 1}, "unknown key a\\n\\x1b[31mb", "remove it"),
        ({"gradient_cliping": 1}, "did you mean 'gradient_clipping'?", "rename it"),
        ({"GRADIENT_CLIPPING": 1}, "did you mean 'gradient_clipping'? Names are matched exactly", "rename it"),
        ({"gradient_clipping ": 1}, "unknown key 'gradient_clipping ' (did you mean 'gradient_clipping'?", "rename it"),
        ({"load_universal_checkpoint": True}, '"load_universal" in checkpoint', "use"),
        ({"seed": 1}, "the training script's own", "use"),
    ],
)
def test_hints_name_what_was_meant(config: dict[str, Any], what: str, do: str) -> None:
    assert what in only(config).what and do in only(config).do


@pytest.mark.parametrize("path", MODELS)
def test_closed_sections_are_the_ones_in_which_deepspeed_refuses_unknown_keys(path: str) -> None:
    assert section(path).is_closed
    with pytest.raises(pydantic.ValidationError):
        MODELS[path](_comment=1)


def test_plain_sections_are_open() -> None:
    assert not any(section(path).is_closed for path in ("", *PLAIN_SECTIONS, "tensor_parallel.partition_config"))


def test_the_passes_of_deepcompile_are_deepspeeds() -> None:
    key = section("compile").keys["passes"]
    assert isinstance(key, Key)
    assert key.members == get_args(PassName)
    found = only({"compile": {"passes": ["z1", "zero3"]}})
    assert (found.rule, found.expected) == ("wrong-type", 'a list out of "z1", "z3", "autosp", "autotp" or null')


def test_integers_that_no_64_bits_hold() -> None:
    huge = 10**309
    found = check_schema({"train_batch_size": huge, "gradient_clipping": huge, "zero_optimization": {"stage": huge}})
    assert {item.rule for item in found} == {"wrong-type"} and len(found) == 3
    assert all(len(item.what) < 150 for item in found)


def test_a_section_of_200_000_unknown_keys_takes_no_time() -> None:
    config = {f"unknown_key_{number}": number for number in range(200_000)}
    began = time.monotonic()
    found = check_schema(config)
    assert time.monotonic() - began < 3.0
    assert len(found) == 21
    assert found[-1].what.startswith("199980 more unknown keys at the top level: unknown_key_20, ")


def test_optimizer_names() -> None:
    found = only({"optimizer": {"type": "sgd", "params": {}}})
    assert found.rule == "optimizer-type"
    assert "did you mean 'SGD'? names are matched exactly" in found.what
    assert found.do == "write 'SGD'"
    assert "it was removed; write AdamW" in only({"optimizer": {"type": "OneBitAdam", "params": {}}}).what
    assert "it needs a closure" in only({"optimizer": {"type": "LBFGS"}}).what
    assert texts({"optimizer": {"type": "adamw", "params": {"lr": 1e-4}}}) == []


def test_optimizer_parameters_follow_the_class_that_is_built() -> None:
    fused = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "fused": True}}}
    assert only(fused).what == "unknown key optimizer.params.fused"
    fused["optimizer"]["params"]["torch_adam"] = True  # type: ignore[index]
    assert texts(fused) == []
    lion = {"optimizer": {"type": "Lion", "params": {"lr": 1e-4, "eps": 1e-8}}}
    assert only(lion).expected == "one of lr, weight_decay, betas, set_grad_none"
    muon = {"optimizer": {"type": "Muon", "params": {"lr": 1e-3, "nesterov": True}}}
    assert only(muon).where == "optimizer.params.nesterov"


def test_scheduler_names_and_parameters() -> None:
    assert "(DeepSpeed: 'WarmupDecayLR')" in only({"scheduler": {"type": "linear", "params": {}}}).what
    assert "(DeepSpeed: 'WarmupCosineLR')" in only({"scheduler": {"type": "cosine", "params": {}}}).what
    assert "did you mean 'WarmupDecayLR'" in only({"scheduler": {"type": "WarmupDecay", "params": {}}}).what
    assert "it takes a Python function" in only({"scheduler": {"type": "LambdaLR", "params": {}}}).what
    missing = only({"scheduler": {"type": "WarmupDecayLR", "params": {}}})
    assert (missing.rule, missing.where) == ("missing-key", "scheduler.params.total_num_steps")
    assert only({"scheduler": {"type": "CosineAnnealingLR"}}).what == "scheduler.params is missing"
    cosine = {"type": "WarmupCosineLR", "params": {"total_num_steps": 9, "warmup_max_lr": 1e-4}}
    assert only({"scheduler": cosine}).where == "scheduler.params.warmup_max_lr"


def test_the_schema_imports_no_torch() -> None:
    program = "import sys, toolkit.ds_config.check; print([m for m in ('torch', 'deepspeed', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_value_deepspeed_writes_as_default_passes() -> None:
    """DeepSpeed's own defaults, written out, have the types the schema asks for."""
    config = {}
    for path, model in MODELS.items():
        if "." in path or path in ("tensor_parallel", "compile"):
            continue
        defaults = json.loads(model().model_dump_json(exclude_none=True))
        keys = section(path).keys
        config[path] = {
            name: value
            for name, value in defaults.items()
            if isinstance(keys[name], Key) and not keys[name].instead  # type: ignore[union-attr]
        }
    config["weight_quantization"].pop("q_type", None)
    assert texts(config) == []
