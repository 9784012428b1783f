"""`toolkit check --explain`: every key is described, the defaults it speaks of are DeepSpeed's, and the table is readable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deepspeed.autotuning.config import DeepSpeedAutotuningConfig
from deepspeed.constants import default_pg_timeout
from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.swap_tensor.aio_config import get_aio_config

from tests.unit.test_schema import MODELS
from toolkit.cli.verbs import main
from toolkit.ds_config.meaning import Meaning, meanings
from toolkit.ds_config.rules import Context
from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.schema_lookup import known_at
from toolkit.ds_config.schema_optimizers import CLASS_PARAMS, ENGINE_PARAMS
from toolkit.ds_config.schema_schedules import SCHEDULERS
from toolkit.ds_config.schema_top import ENVIRONMENT, TOP

ROOT = Path(__file__).parents[2]


def keys_of(section: Section, path: str) -> Iterator[tuple[str, Key | Section]]:
    for name, known in section.keys.items():
        where = f"{path}.{name}" if path else name
        yield where, known
        if isinstance(known, Section):
            yield from keys_of(known, where)
        elif known.item is not None:
            yield from keys_of(known.item, f"{where}[0]")
    if section.each is not None:
        yield from keys_of(section.each, f"{path}.*")


def every_key() -> Iterator[tuple[str, Key | Section]]:
    yield from keys_of(TOP, "")
    for name, params in {**CLASS_PARAMS, "engine": ENGINE_PARAMS}.items():
        yield from ((f"{name}.{key}", known) for key, known in params.items())
    for name, section in SCHEDULERS.items():
        yield name, section
        yield from keys_of(section, name)


def test_every_key_is_described() -> None:
    described = 0
    for where, known in every_key():
        if isinstance(known, Key) and known.instead:
            continue
        assert 8 < len(known.does) < 140 and not known.does.endswith("."), where
        assert not known.does[0].isupper(), where
        described += 1
    assert described > 550


def value_of(words: str) -> Any:
    """The default that a text names: 100,000, true, 1 MiB, a word."""
    number, _, unit = words.replace(",", "").partition(" ")
    if unit in ("KiB", "MiB"):
        return int(number) * 1024 ** (1 if unit == "KiB" else 2)
    try:
        return json.loads(number)
    except ValueError:
        return words


def said(known: Key | Section) -> Any:
    """The default that the description of a key names; None where it names none."""
    found = re.search(r"; ([\w.,]+(?: [KM]iB)?) where it is absent$", known.does)
    return None if found is None else value_of(found[1])


@pytest.mark.parametrize("path", MODELS)
def test_the_defaults_of_typed_sections(path: str) -> None:
    for name, field in MODELS[path].model_fields.items():
        key = known_at({}, f"{path}.{name}")
        assert key is not None
        default = getattr(field.default, "value", field.default)
        if said(key) is not None:
            assert said(key) == default, (path, name)
        first = key.absent.partition(":")[0].split(" ")[0].replace(",", "")
        if first in ("true", "false", "none") or first.isdigit():
            assert default == (value_of(first)) or name == "overlap_comm", (path, name, key.absent)
        elif isinstance(default, bool) and isinstance(key, Key) and key.kind == "bool" and default:
            assert "true where it is absent" in key.does or "never read" in key.does or key.absent, (path, name)


def test_the_defaults_of_other_sections() -> None:
    sections: dict[str, Any] = {
        "autotuning": vars(DeepSpeedAutotuningConfig({})),
        "flops_profiler": vars(DeepSpeedFlopsProfilerConfig({})),
        "aio": get_aio_config({}),
    }
    compared = 0
    for path, defaults in sections.items():
        for name, default in defaults.items():
            key = known_at({}, f"{path}.{name}")
            if key is not None and said(key) is not None:
                assert said(key) == default, (path, name)
                compared += 1
    assert compared >= 20
    config = DeepSpeedConfig({"train_batch_size": 1})
    assert config.gradient_clipping == 1.0 and str(TOP.keys["gradient_clipping"].absent).startswith("1.0")
    assert config.managed_gradient_accumulation is True and config.zero_force_ds_cpu_optimizer is True
    assert default_pg_timeout.total_seconds() == 600 and ": 10 where" in ENVIRONMENT["DEEPSPEED_TIMEOUT"]


def explained(config: dict[str, Any], arguments: dict[str, Any] | None = None) -> dict[str, Meaning]:
    return {meaning.where: meaning for meaning in meanings(Context(config, training_args=arguments))}


def test_what_is_written_is_explained_as_it_acts() -> None:
    found = explained(
        {
            "train_micro_batch_size_per_gpu": "auto",
            "_note": "x",
            "gradient_clipp1ng": 1,
            "amp": {"enabled": True},
            "bfloat16": {"enabled": True},
            "fp16": {"enabled": False},
            "tensorboard": {"enabled": True, "ouput_path": "x"},
            "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.99]}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
            "zero_optimization": {"stage": 2, "sub_group_size": 5, "reduce_bucket_size": "x"},
            "tensor_parallel": {"partition_config": {"layer_specs": [{"patterns": ["q"]}]}},
        },
        {"per_device_train_batch_size": 3},
    )
    does = {where: meaning.does for where, meaning in found.items() if meaning.is_written}
    assert found["train_micro_batch_size_per_gpu"].filled == 3
    assert does["_note"] == "is a comment"
    assert does["gradient_clipp1ng"] == "is ignored: DeepSpeed does not know it here"
    assert does["tensorboard.ouput_path"] == "is refused: DeepSpeed does not know it here"
    assert does["amp"].startswith("is refused: it was removed (instead: ")
    assert does["bfloat16"].startswith("is deprecated (instead: ")
    assert does["fp16.enabled"] == "is off (on, it casts the parameters to fp16 and keeps fp32 masters)"
    assert does["zero_optimization.stage"] == "shards the optimizer's states and the gradients over the ranks"
    assert does["zero_optimization.sub_group_size"].startswith("is ignored at stage 2 (it is how many elements")
    assert '"x" is none of its values' in does["zero_optimization.reduce_bucket_size"]
    assert does["optimizer.params.betas"].startswith("are how slowly the means")
    assert does["scheduler.params.warmup_num_steps"] == "is the optimizer steps of the warm-up"
    assert "tensor_parallel.partition_config.layer_specs[0].patterns" in does


def test_what_is_missing_is_explained_where_it_matters() -> None:
    def missing(config: dict[str, Any]) -> set[str]:
        return {where for where, meaning in explained(config).items() if not meaning.is_written}

    always = missing({})
    assert {"gradient_clipping", "zero_optimization", "optimizer", "scheduler", "DEEPSPEED_TIMEOUT"} <= always
    assert "communication_data_type" not in always and "data_types" not in always
    in_bf16 = missing({"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}})
    assert {"communication_data_type", "data_types", "bf16.check_grad_overflow"} <= in_bf16
    assert "zero_optimization.stage3_max_live_parameters" in in_bf16
    at_stage_1 = missing({"zero_optimization": {"stage": 1, "max_live_parameters": 1}})
    assert "zero_optimization.stage3_max_live_parameters" not in at_stage_1
    assert "bf16.check_grad_overflow" not in missing({"bf16": {"enabled": False}})
    offloads = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert "zero_optimization.offload_optimizer.pin_memory" in missing(offloads)
    schedule = {"scheduler": {"type": "WarmupLR", "params": {}}}
    assert "scheduler.params.warmup_type" in missing(schedule)


def test_the_table_and_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{\n  "train_batch_size": 8,\n  "gradient_clipping": 0.5,\n  "zero_optimization": {"stage": 1}\n}')
    assert main(["check", str(path), "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: what is written"
    row = next(line for line in lines if "gradient_clipping" in line)
    assert re.fullmatch(r"3 +gradient_clipping +0\.5 +clips the norm of all gradients to it; 0 for never", row)
    assert f"{path}: what is missing and matters" in lines
    assert lines[-1] == f"{path}: 0 errors, 0 warnings" and not any(line.endswith(" ") for line in lines)
    assert main(["check", str(path), "--explain", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["findings"] == []
    assert data["explained"][1] == {
        "where": "gradient_clipping",
        "value": 0.5,
        "is_written": True,
        "does": "clips the norm of all gradients to it; 0 for never",
        "filled": None,
        "line": 3,
    }
    assert main(["check", str(path), "--explain", "--fix"]) == 2
    assert "argument --fix: not allowed with argument --explain" in capsys.readouterr().err


def test_every_shipped_configuration_is_explained() -> None:
    files = sorted((ROOT / "ds_configs").glob("*.json"))
    for file in files:
        for where, meaning in explained(json.loads(file.read_text())).items():
            assert "does not know" not in meaning.does and "none of its values" not in meaning.does, (file.name, where)
