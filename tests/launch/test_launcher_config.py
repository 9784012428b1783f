"""What launchers hand over, and that a disagreement with the recipe is named; accelerate reads our YAML as we mean it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.launch.runs import tiny_recipe
from tests.launch.shrink import RECIPES, ROOT
from toolkit.cli.launcher_config import check_launcher_config, check_process_count
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.render import render
from toolkit.errors import ConfigError, LaunchError
from toolkit.recipe import Batch, Checkpoint, Launch, Recipe
from toolkit.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "OMPI_", "PMI_", "SLURM_")) or name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
            monkeypatch.delenv(name)


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe(Path("model"), Path("data.jsonl"), steps=3, checkpoint=Checkpoint())


def rendered(recipe: Recipe, world_size: int | None = None) -> dict[str, Any]:
    return render(recipe, assumed_target(recipe, world_size))


def written(config: dict[str, Any], folder: Path) -> Path:
    path = folder / "handed.json"
    path.write_text(json.dumps(config))
    return path


def test_every_value_of_the_environment_is_compared(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    agreeing = {
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2",
        "ACCELERATE_GRADIENT_CLIPPING": "0.50",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_FSDP": "false",
    }
    for name, value in agreeing.items():
        monkeypatch.setenv(name, value)
    check_launcher_config(rendered(recipe), None)
    for name in agreeing:
        monkeypatch.setenv(name, {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_FSDP": "true"}.get(name, "9"))
    with pytest.raises(ConfigError) as failure:
        check_launcher_config(rendered(recipe), None)
    assert failure.value.what == (
        "the launcher contradicts the recipe: "
        "ACCELERATE_DEEPSPEED_ZERO_STAGE=9, the recipe has zero_optimization.stage=2; "
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=9, the recipe has gradient_accumulation_steps=2; "
        "ACCELERATE_GRADIENT_CLIPPING=9, the recipe has gradient_clipping=0.5; "
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE=9, the recipe has zero_optimization.offload_optimizer.device=none; "
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE=9, the recipe has zero_optimization.offload_param.device=none; "
        "ACCELERATE_MIXED_PRECISION=fp16, the recipe has fp32; "
        "ACCELERATE_USE_FSDP=true, the recipe trains with DeepSpeed"
    )
    assert failure.value.do.startswith("leave the file and the flags out")


def test_files_of_both_launchers_and_the_environment_in_one_message(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(rendered(recipe) | {"gradient_clipping": "auto", "train_batch_size": 8, "fp16": {}}, tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError) as failure:
        check_launcher_config(rendered(recipe), path)
    assert failure.value.what == (
        "the launcher contradicts the recipe: "
        f"--deepspeed_config {path}: train_batch_size is 8 there and 4 in the recipe; "
        f"accelerate's deepspeed_config_file {path}: train_batch_size is 8 there and 4 in the recipe; "
        "ACCELERATE_MIXED_PRECISION=bf16, the recipe has fp32"
    )


def test_flags_may_change_what_a_file_has_from_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    path = written(rendered(recipe), tmp_path)
    # Another number of processes, and a field changed by a flag: both differ from the file, which is the recipe's own.
    started = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"zero_stage": 3})})
    config = rendered(started, world_size=1)
    check_launcher_config(config, path, file=recipe)
    with pytest.raises(ConfigError, match="gradient_accumulation_steps is 2 there and 4 in the recipe"):
        check_launcher_config(config, path)
    # A value that neither the recipe nor a flag asked for is somebody else's.
    path = written(rendered(recipe) | {"gradient_clipping": 7.5}, tmp_path)
    with pytest.raises(ConfigError) as failure:
        check_launcher_config(config, path, file=recipe)
    assert failure.value.what == (
        f"the launcher contradicts the recipe: --deepspeed_config {path}: gradient_clipping is 7.5 there and 0.5 in the recipe"
    )


def test_a_recipe_that_fits_only_the_started_world_is_still_compared(recipe: Recipe, tmp_path: Path) -> None:
    odd = recipe.model_copy(update={"batch": Batch(global_size=3), "launch": Launch(devices=2)})
    config = rendered(odd, world_size=3)
    check_launcher_config(config, written(config, tmp_path), file=odd)
    with pytest.raises(ConfigError, match="train_batch_size is 6 there and 3 in the recipe"):
        check_launcher_config(config, written(config | {"train_batch_size": 6}, tmp_path), file=odd)


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_know_nothing_of_each_other(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    check_process_count()
    monkeypatch.setenv(variable, "4")
    with pytest.raises(LaunchError) as failure:
        check_process_count()
    assert str(failure.value) == (
        f"{variable}=4 without RANK: each of these 4 processes would be a run of its own\n"
        "  expected: a launcher that tells each process its rank\n"
        "  do this:  start with `deepspeed --hostfile FILE`, `torchrun` or `accelerate launch`; under Slurm, one launcher per host"
    )
    monkeypatch.setenv("RANK", "0")
    check_process_count()


def plugins(rank: int, world_size: int, yaml_files: list[str], root: str) -> list[dict[str, Any]]:
    """What accelerate makes of each YAML: its launcher's environment, then the plugin it builds from it, checks included."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import DeepSpeedPlugin, patch_environment
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    os.chdir(root)
    found = []
    for file in yaml_files:
        words = ["--config_file", file, "--main_process_port", "0", "--main_process_ip", "127.0.0.1", "x.py"]
        options, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(options)
        with patch_environment(**environment):
            plugin = DeepSpeedPlugin()
        found.append(
            {
                "processes": options.num_processes,
                "per host": int(options.nproc_per_node),
                "cpu": options.use_cpu,
                "deepspeed": options.use_deepspeed,
                "config": plugin.deepspeed_config,
                "exported": {key for key in environment if key.startswith("ACCELERATE_") and key not in os.environ},
            }
        )
    return found


def test_accelerate_takes_every_rendered_yaml() -> None:
    names = [path.stem for path in RECIPES]
    (found,) = run_distributed(plugins, 1, [f"ds_configs/{name}.yaml" for name in names], str(ROOT))
    for path, result in zip(RECIPES, found, strict=True):
        launch = load_recipe(path).launch
        assert (result["processes"], result["per host"]) == (launch.world_size, launch.devices)
        # DeepSpeed on CPU processes is `use_deepspeed` without --cpu, on a host with or without GPUs.
        assert result["deepspeed"] and not result["cpu"]
        json_file = ROOT / "ds_configs" / f"{path.stem}.json"
        # accelerate adds one key of its own: DeepSpeed shall not print.
        assert result["config"] == json.loads(json_file.read_text()) | {"steps_per_print": math.inf}
        assert "ACCELERATE_DEEPSPEED_CONFIG_FILE" in result["exported"]
        assert "ACCELERATE_DEEPSPEED_ZERO_STAGE" not in result["exported"]
