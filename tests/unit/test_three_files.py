"""A DeepSpeed JSON, the Trainer's arguments and accelerate's file: alone, and what they make together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.constants import DEEPSPEED_MULTINODE_LAUNCHERS
from accelerate.utils.dataclasses import DistributedType
from transformers import TrainingArguments

from toolkit.cli.verbs import main
from toolkit.ds_config.accelerate_file import made_from_block
from toolkit.ds_config.check import check_files
from toolkit.ds_config.config_file import read_config, read_other
from toolkit.ds_config.files import together
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.rules.accelerate import ACCELERATE_RULES
from toolkit.ds_config.schema_accelerate import BLOCK, CLUSTER, DISTRIBUTED_TYPES, LAUNCHERS, OVERRULED
from toolkit.ds_config.target import Target

ROOT = Path(__file__).parents[2]

DS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
}
CLUSTER_FILE: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "DEEPSPEED",
    "num_machines": 1,
    "num_processes": 2,
    "deepspeed_config": {"zero_stage": 2, "gradient_clipping": 1.0},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(
    main_file: str, arguments: dict[str, Any] | None = None, accelerate: dict[str, Any] | None = None, **options: Any
) -> list[Finding]:
    for name, data in (("args.json", arguments), ("acc.yaml", accelerate)):
        if data is not None:
            Path(name).write_text(json.dumps(data) if name.endswith("json") else yaml.safe_dump(data))
    behind = {
        "arguments": read_other(Path("args.json"), "arguments") if arguments and main_file != "args.json" else None,
        "accelerate": read_other(Path("acc.yaml"), "accelerate") if accelerate and main_file != "acc.yaml" else None,
    }
    return check_files(together(read_config(Path(main_file)), **behind), **options)


def cluster(**changes: Any) -> dict[str, Any]:
    """CLUSTER_FILE with other values; those of the block without its name. None removes."""
    file, block = dict(CLUSTER_FILE), dict(CLUSTER_FILE["deepspeed_config"])
    for name, value in changes.items():
        held = block if name in BLOCK.keys or name.startswith("x_") else file
        held[name.removeprefix("x_")] = value
    file["deepspeed_config"] = {name: value for name, value in block.items() if value is not None}
    return {name: value for name, value in file.items() if value is not None}


FILE = {"deepspeed_config_file": "ds.json", "zero_stage": None, "gradient_clipping": None}

CASES: list[tuple[str, dict[str, Any], str, str, list[str]]] = [
    ("accelerate-unknown-key", {"num_procs": 4}, "num_procs", "accelerate refuses the file", []),
    ("accelerate-unknown-key", {"num_machins": 1, "num_machines": None}, "num_machins", "did you mean 'num_machines'?",
     ["num_machins renamed 'num_machines'"]),
    ("accelerate-unknown-key", {"x_zero_stag": 3, "zero_stage": None}, "deepspeed_config.zero_stag",
     "accelerate ignores it", ["deepspeed_config.zero_stag renamed 'zero_stage'"]),
    ("accelerate-value", {"mixed_precision": False}, "mixed_precision", "mixed_precision=false",
     ['mixed_precision="no" written']),
    ("accelerate-value", {"gpu_ids": 0}, "gpu_ids", "gpu_ids=0", ['gpu_ids="0" written']),
    ("accelerate-value", {"offload_optimizer_device": "CPU"}, "deepspeed_config.offload_optimizer_device", '"CPU"',
     ['deepspeed_config.offload_optimizer_device="cpu" written']),
    ("accelerate-value", {"zero_stage": 4}, "deepspeed_config.zero_stage", "=4", []),
    ("accelerate-distributed-type", {"distributed_type": "MULTI_GPU"}, "distributed_type",
     "accelerate does not look at deepspeed_config", []),
    ("accelerate-distributed-type", {"distributed_type": None}, "distributed_type", "accelerate refuses the file", []),
    ("accelerate-beside-a-file", {**FILE, "zero_stage": 2}, "deepspeed_config.zero_stage",
     "zero_optimization.stage=2 there", ["deepspeed_config.zero_stage removed"]),
    ("accelerate-beside-a-file", {**FILE, "gradient_clipping": 0.5}, "deepspeed_config.gradient_clipping",
     "gradient_clipping=1.0 there", []),
    ("accelerate-beside-a-file", {**FILE, "zero3_save_16bit_model": True}, "deepspeed_config.zero3_save_16bit_model",
     "is missing there", []),
    ("accelerate-beside-a-file", {**FILE, "mixed_precision": "bf16"}, "mixed_precision", "accelerate refuses it", []),
    ("accelerate-beside-a-file", {**FILE, "mixed_precision": "no"}, "mixed_precision", "accelerate refuses it",
     ["mixed_precision removed"]),
    ("accelerate-processes", {"num_processes": None}, "num_processes", "stops without --num_processes", []),
    ("accelerate-processes", {"num_processes": 7, "num_machines": 2, "main_process_ip": "h",
                              "deepspeed_multinode_launcher": "standard"}, "num_processes", "6 are started", []),
    ("accelerate-machines", {"num_machines": 2, "machine_rank": 2, "main_process_ip": "h",
                             "deepspeed_multinode_launcher": "standard"}, "machine_rank", "machine_rank=2", []),
    ("accelerate-machines", {"num_machines": 2, "deepspeed_multinode_launcher": "standard"}, "main_process_ip",
     "is missing with num_machines=2", []),
    ("accelerate-machines", {"num_machines": 2}, "deepspeed_config.deepspeed_hostfile",
     "'pdsh', the default: one machine is started", []),
    ("accelerate-zero3-init", {"zero3_init_flag": True}, "deepspeed_config.zero3_init_flag", "no effect at stage 2",
     ["deepspeed_config.zero3_init_flag=false written"]),
    ("accelerate-offload", {"zero_stage": 3, "zero3_save_16bit_model": True, "offload_param_device": "nvme"},
     "deepspeed_config.offload_param_nvme_path", "is missing for device 'nvme'", []),
    ("accelerate-clipping", {"gradient_clipping": 0}, "deepspeed_config.gradient_clipping",
     "accelerate leaves it out, and DeepSpeed clips at 1.0", []),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "changes", "where", "what", "fix"), CASES, ids=lambda value: str(value)[:40])
def test_rules_about_accelerates_file(
    rule: str, changes: dict[str, Any], where: str, what: str, fix: list[str]
) -> None:
    Path("ds.json").write_text(json.dumps(DS))
    (finding,) = [item for item in found("acc.yaml", accelerate=cluster(**changes)) if item.rule == rule]
    assert finding.where == where and what in finding.what and finding.expected and finding.do
    assert [str(edit) for edit in finding.fix] == fix
    assert (finding.file, finding.role) == ("acc.yaml", "accelerate") and finding.line


def test_every_rule_about_accelerates_file_has_a_case() -> None:
    """Those about other files beside it stand below."""
    below = {"accelerate-mixed-precision", "accelerate-scheduler-steps"}
    assert {case[0] for case in CASES} | below == {rule.id for rule in ACCELERATE_RULES}


def test_accelerate_divides_the_steps_of_its_scheduler() -> None:
    schedule = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": 3}}
    Path("ds.json").write_text(json.dumps({**DS, "scheduler": schedule}))
    rules = {item.rule: item for item in found("acc.yaml", accelerate=cluster(**FILE))}
    finding = rules["accelerate-scheduler-steps"]
    assert (finding.where, finding.file, finding.severity) == ("scheduler.params.total_num_steps", "ds.json", "warning")
    assert finding.what.endswith("the total of DummyScheduler / 2, the number of processes")
    alone = found("acc.yaml", accelerate=cluster(**FILE, num_processes=1))
    assert "accelerate-scheduler-steps" not in {item.rule for item in alone}


def test_sound_files_are_clean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("acc.yaml", accelerate=CLUSTER_FILE) == []
    Path("ds.json").write_text(json.dumps(DS))
    assert found("acc.yaml", accelerate=cluster(**FILE)) == []
    monkeypatch.chdir(ROOT)
    files = sorted(Path("ds_configs").glob("*.yaml"))
    assert len(files) >= 16
    for file in files:
        # No key of the JSON says how many ranks share a model: the recipe does.
        recipe = f"recipes/{file.stem}.py"
        assert main(["check", str(file), "--recipe", recipe, "--strict"]) == 0, capsys.readouterr().out
        assert capsys.readouterr().out.endswith(f"{file}: 0 errors, 0 warnings\n")


def test_where_accelerate_says_what_deepspeed_ignores() -> None:
    """A finding about the configuration that accelerate makes points to the key of accelerate's own file."""
    (finding,) = found("acc.yaml", accelerate=cluster(offload_param_device="cpu"))
    lines = Path("acc.yaml").read_text().splitlines()
    assert (finding.rule, finding.where) == ("offload-param-below-stage-3", "deepspeed_config.offload_param_device")
    assert lines[(finding.line or 0) - 1].strip() == "offload_param_device: cpu"


def test_the_arguments_name_or_hold_the_configuration() -> None:
    wrong = {**DS, "gradient_clipping": 0.5}
    Path("ds.json").write_text(json.dumps(wrong))
    expected = [("trainer-mismatch", "ds.json"), ("trainer-mismatch", "ds.json")]
    named = found("args.json", {"deepspeed": "ds.json", "max_grad_norm": 1.0})
    assert [(item.rule, item.file) for item in named] == expected
    inside = found("args.json", {"deepspeed": wrong, "max_grad_norm": 1.0, "per_device_train_batch_size": 2})
    assert [(item.where, item.file) for item in inside] == [("deepspeed.gradient_clipping", "args.json")]
    as_text = found("args.json", {"deepspeed": json.dumps(wrong), "per_device_train_batch_size": 2})
    assert [(item.where, item.rule) for item in as_text] == [("deepspeed", "trainer-mismatch")]
    alone = found("args.json", {"learning_rate": "1e-5"})
    assert [(item.where, item.rule) for item in alone] == [("learning_rate", "trainer-argument-value")]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("gone.json", "deepspeed: gone.json does not exist"),
        ("args.json", "deepspeed: args.json is no DeepSpeed JSON"),
        ("{broken", "deepspeed holds a text that is not JSON"),
        (7, "deepspeed is neither the name of a file nor an object"),
    ],
)
def test_a_configuration_that_is_named_and_cannot_be_read(value: Any, what: str) -> None:
    (finding,) = found("args.json", {"deepspeed": value})
    assert finding.rule == "named-file" and finding.where == "deepspeed" and what in finding.what


def test_a_configuration_is_looked_for_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    Path("inner/ds.json").write_text(json.dumps(DS))
    Path("inner/acc.yaml").write_text(yaml.safe_dump(cluster(**FILE)))
    files = together(read_config(Path("inner/acc.yaml")))
    assert files.config is not None and files.config.path == Path("inner/ds.json")


def test_two_configurations() -> None:
    for name in ("ds.json", "other.json"):
        Path(name).write_text(json.dumps(DS))
    arguments = {"deepspeed": "ds.json", "per_device_train_batch_size": 2}
    other = cluster(**{**FILE, "deepspeed_config_file": "other.json"})
    (finding,) = found("args.json", arguments, other)
    assert finding.rule == "two-configurations" and finding.where == "deepspeed_config.deepspeed_config_file"
    assert "the Trainer reads its own `deepspeed`, and this one is ignored" in finding.what
    (finding,) = found("other.json", arguments)
    assert finding.what == "deepspeed among the arguments is not other.json, and the Trainer reads that one alone"
    (finding,) = found("ds.json", None, cluster(zero_stage=None, gradient_clipping=None))
    assert "the file does not name ds.json: accelerate makes a configuration of its own" in finding.what
    assert found("ds.json", arguments, cluster(**FILE)) == []


def test_all_three_agree_on_the_ranks_and_the_number_format() -> None:
    Path("ds.json").write_text(json.dumps({**DS, "train_batch_size": 8}))
    both = found("ds.json", {"per_device_train_batch_size": 2}, cluster(**FILE), target=Target(4, "cuda"))
    assert [(item.rule, item.where) for item in both] == [("accelerate-processes", "num_processes")]
    (finding,) = found("acc.yaml", {"fp16": True, "max_grad_norm": 1.0}, cluster(mixed_precision="bf16"))
    assert finding.rule == "accelerate-mixed-precision" and "fp16 is trained" in finding.what


def test_num_processes_is_the_world_size(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ds.json").write_text(json.dumps({**DS, "train_batch_size": 8}))
    Path("acc.yaml").write_text(yaml.safe_dump(cluster(**FILE)))
    assert main(["check", "acc.yaml"]) == 2
    out = capsys.readouterr().out
    assert (
        "ds.json:1: error: train_batch_size=8 is not" in out
        and "assumed: world size 2, device cuda, the DeepSpeed JSON ds.json" in out
    )
    assert main(["check", "ds.json", "--accelerate", "ds.json"]) == 2
    assert "it is a DeepSpeed JSON, not accelerate's file" in capsys.readouterr().err
    assert main(["check", "acc.yaml", "--accelerate", "acc.yaml"]) == 2
    assert "acc.yaml is accelerate's file, and so is what stands behind --accelerate" in capsys.readouterr().err


YAML = """# ours
distributed_type: DEEPSPEED
mixed_precision: no   # in the JSON
num_proceses: 2
zero3_init_flag: true
deepspeed_config:
  zero_stage: 2  # enough
  gradient_clipping: "1.0"
"""
CURED_YAML = """# ours
distributed_type: DEEPSPEED
mixed_precision: "no"   # in the JSON
num_processes: 2
deepspeed_config:
  zero_stage: 2  # enough
  gradient_clipping: 1.0
  zero3_init_flag: false
"""


def test_fix_keeps_the_comments_and_the_layout_of_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    Path("acc.yaml").write_text(YAML)
    assert main(["check", "acc.yaml", "--fix"]) == 0
    assert Path("acc.yaml").read_text() == CURED_YAML
    assert main(["check", "acc.yaml", "--fix"]) == 0 and "nothing to fix" in capsys.readouterr().out
    assert Path("acc.yaml").read_text() == CURED_YAML


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("distributed_type: [\n", "acc.yaml:2 is not YAML"),
        ("distributed_type: &a x\nuse_cpu: *a\n", "acc.yaml has an alias (*name)"),
        ("- 1\n", "acc.yaml holds a list"),
        ("a: " + "[" * 3000 + "]" * 3000, "cannot be followed"),
    ],
    ids=["broken", "alias", "list", "deep"],
)
def test_yaml_that_is_none(text: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("acc.yaml").write_text(text)
    assert main(["check", "acc.yaml"]) == 2
    assert what in capsys.readouterr().err


def test_the_tables_are_those_of_the_installed_accelerate() -> None:
    assert set(CLUSTER.keys) - {"fp16", "dynamo_backend"} == set(ClusterConfig.__dataclass_fields__)
    assert set(LAUNCHERS) == set(DEEPSPEED_MULTINODE_LAUNCHERS)
    assert set(DISTRIBUTED_TYPES) == {kind.value for kind in DistributedType}
    options = {action.dest for action in launch_command_parser()._actions}
    assert set(BLOCK.keys) <= options
    assert {name for name in options if name.startswith("deepspeed_")} <= set(BLOCK.keys)


def environment(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As prepare_deepspeed_cmd_env makes it."""
    names = {
        "zero_stage": "DEEPSPEED_ZERO_STAGE",
        "gradient_accumulation_steps": "GRADIENT_ACCUMULATION_STEPS",
        "gradient_clipping": "GRADIENT_CLIPPING",
        "offload_optimizer_device": "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
        "offload_param_device": "DEEPSPEED_OFFLOAD_PARAM_DEVICE",
        "offload_optimizer_nvme_path": "DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH",
        "offload_param_nvme_path": "DEEPSPEED_OFFLOAD_PARAM_NVME_PATH",
        "zero3_save_16bit_model": "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    }
    for name, value in block.items():
        monkeypatch.setenv(f"ACCELERATE_{names[name]}", str(value).lower())
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", ",".join(block))


@pytest.mark.parametrize(
    "block",
    [
        {"zero_stage": 2, "gradient_clipping": 0.5, "gradient_accumulation_steps": 4},
        {"zero_stage": 3, "offload_optimizer_device": "cpu", "zero3_save_16bit_model": True},
        {"zero_stage": 0, "gradient_clipping": 0},
        {},
    ],
)
def test_what_accelerate_makes_of_its_block(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    environment(block, monkeypatch)
    made = DeepSpeedPlugin().deepspeed_config
    made.pop("steps_per_print")
    assert made_from_block({"deepspeed_config": block}) == made


@pytest.mark.parametrize("name", OVERRULED)
def test_accelerate_refuses_these_beside_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", name)
    with pytest.raises(ValueError, match="will be ignored"):
        DeepSpeedPlugin(hf_ds_config=dict(DS))


def test_transformers_refuses_these_together() -> None:
    for given in (
        {"load_best_model_at_end": True},
        {"lr_scheduler_type": "greedy"},
        {"dataloader_prefetch_factor": 2},
    ):
        with pytest.raises(ValueError, match=r"requires|can only be set"):
            TrainingArguments(use_cpu=True, **given)
