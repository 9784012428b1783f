"""What a launcher hands over besides the recipe, and whether it says the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.ds_config.config_file import read_config
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.render import follows_model, render
from toolkit.errors import ConfigError, InputError, LaunchError
from toolkit.recipe import Recipe

FILLED_IN = "auto"
"""Value by which Hugging Face configurations leave a key to the program."""


def check_launcher_config(config: Mapping[str, Any], given: Path | None, *, file: Recipe | None = None) -> None:
    """Raise ConfigError naming every disagreement between `config`, rendered from the recipe, and the launcher.

    `given` is the JSON of --deepspeed_config (or --deepspeed); accelerate names its own in the environment. `file` is
    the recipe without this start's flags: what a JSON has from there, as ds_configs/ does, a flag may change.
    """
    found = []
    following = follows_model(file) if file is not None else frozenset()
    for source, path in _files(given):
        handed = _read(path, source)
        against_file = {key for key, _ in disagreements(handed, _rendering_of(file) or config)} - following
        against_start = disagreements(handed, config)
        found += [f"{source} {path}: {text}" for key, text in against_start if key in against_file]
    found += _contradictions_in_environment(config)
    if found:
        raise ConfigError(
            "the launcher contradicts the recipe: " + "; ".join(found),
            expected="the values of the recipe, which is the one source of truth",
            do="leave the file and the flags out (the recipe renders its own configuration), or set the recipe's fields to these values",
        )


def _rendering_of(file: Recipe | None) -> Mapping[str, Any] | None:
    """What ds_configs/ would hold for `file`; None where it cannot be rendered for the machines it is meant for."""
    try:
        return render(file, assumed_target(file)) if file is not None else None
    except InputError:
        return None


def check_process_count() -> None:
    """Raise LaunchError when a launcher was asked for several processes and this one cannot know of the others."""
    if "RANK" in os.environ:
        return
    # accelerate's launcher for one process names a port only when it was asked for more than one.
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:
        raise LaunchError(
            "accelerate launch was asked for several processes and started one: without a GPU, it starts more only through DeepSpeed",
            expected="as many processes as --num_processes says",
            do="add --use_deepspeed (instead of --cpu), or pass --config_file ds_configs/NAME.yaml; for one process start with `python`",
        )
    for variable in STARTED_TOGETHER:
        count = os.environ.get(variable, "")
        if count.isdigit() and int(count) > 1:
            raise LaunchError(
                f"{variable}={count} without RANK: each of these {count} processes would be a run of its own",
                expected="a launcher that tells each process its rank",
                do="start with `deepspeed --hostfile FILE`, `torchrun` or `accelerate launch`; under Slurm, one launcher per host",
            )


STARTED_TOGETHER = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where Open MPI, other MPIs and srun say how many processes they started."""


def _files(given: Path | None) -> Iterator[tuple[str, Path]]:
    if given is not None:
        yield "--deepspeed_config", given
    handed = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if handed and handed != "none" and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        yield "accelerate's deepspeed_config_file", Path(handed)


def _read(path: Path, source: str) -> Mapping[str, Any]:
    try:
        return read_config(path).data
    except ConfigError as error:
        raise ConfigError(
            f"{source} {error.what}", expected=error.expected, do=f"{error.do}, or leave it out"
        ) from None


def disagreements(
    handed: Mapping[str, Any], rendered: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """(key, sentence) for each key of `handed` whose value the recipe renders otherwise; "auto" agrees with everything."""
    for key, value in handed.items():
        name = f"{prefix}{key}"
        if value == FILLED_IN:
            continue
        ours = rendered.get(key)
        if isinstance(value, dict) and isinstance(ours, dict):
            yield from disagreements(value, ours, f"{name}.")
        elif key not in rendered and not value:
            continue  # a feature switched off on one side and absent on the other
        elif value != ours:
            here = json.dumps(ours) if key in rendered else "absent"
            yield name, f"{name} is {json.dumps(value)} there and {here} in the recipe"


ENVIRONMENT = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("zero_optimization", "stage"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps",),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping",),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("zero_optimization", "offload_optimizer", "device"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("zero_optimization", "offload_param", "device"),
}
"""What accelerate exports from its flags and YAML where they say it, and the key it speaks of."""

OTHER_ENGINES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG")
"""Set to "true" where accelerate was told to train by something else than DeepSpeed."""


def _contradictions_in_environment(config: Mapping[str, Any]) -> list[str]:
    found = []
    for variable, keys in ENVIRONMENT.items():
        value = os.environ.get(variable, "")
        ours: Any = config
        for key in keys:
            ours = ours.get(key, "none") if isinstance(ours, Mapping) else "none"
        if value and str(ours) != value and not _same_number(ours, value):
            found.append(f"{variable}={value}, the recipe has {'.'.join(keys)}={ours}")
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    dtype = next((name for name in ("bf16", "fp16") if name in config), "fp32")
    # "no" is also what accelerate exports when nobody chose.
    if mixed not in ("no", "", dtype):
        found.append(f"ACCELERATE_MIXED_PRECISION={mixed}, the recipe has {dtype}")
    found += [
        f"{name}=true, the recipe trains with DeepSpeed" for name in OTHER_ENGINES if os.environ.get(name) == "true"
    ]
    return found


def _same_number(ours: Any, text: str) -> bool:
    try:
        return float(ours) == float(text)
    except (TypeError, ValueError):
        return False
