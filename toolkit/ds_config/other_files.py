"""Which of the three files a file is, and what people name in the place of each: it is called by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.ds_config.file_text import place_of
from toolkit.ds_config.findings import Role
from toolkit.ds_config.schema_arguments import ARGUMENTS, REMOVED
from toolkit.ds_config.schema_top import TOP
from toolkit.errors import ConfigError, first_few

DEEPSPEEDS_OWN = ("zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size")
"""Keys that no TrainingArguments have."""

ACCELERATES_OWN = ("compute_environment", "distributed_type", "deepspeed_config", "deepspeed_config_file")
"""Keys of the file that `accelerate config` writes."""

EXAMPLES: dict[Role, str] = {
    "config": "a DeepSpeed JSON file",
    "arguments": 'a JSON of TrainingArguments, e.g. {"learning_rate": 2e-5, "bf16": true}',
    "accelerate": "the file that `accelerate config` writes, YAML or JSON",
}

NAMES: dict[Role, str] = {
    "config": "a DeepSpeed JSON",
    "arguments": "the Trainer's arguments",
    "accelerate": "accelerate's file",
}

FLAGS: dict[Role, str] = {"config": "", "arguments": "--training-args ", "accelerate": "--accelerate "}


def role_of(data: Mapping[str, Any]) -> Role:
    """What a file that holds `data` is."""
    # bf16 and others are keys of both: an object in DeepSpeed's file, true or false among the arguments.
    if any(key not in ARGUMENTS or isinstance(data[key], Mapping) for key in data.keys() & TOP.keys.keys()):
        return "config"
    if any(key in data for key in ACCELERATES_OWN):
        return "accelerate"
    if (data.keys() & ARGUMENTS) - TOP.keys.keys():
        return "arguments"
    return "config"


def refuse_wrapped(data: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError where `data`, read from `path` as a DeepSpeed JSON, has that inside of one of its values."""
    if data.keys() & TOP.keys.keys():
        return
    for key, inner in data.items():
        if isinstance(inner, Mapping) and TOP.keys.keys() & inner.keys():
            raise ConfigError(
                f"{place_of(path)} holds a DeepSpeed configuration inside {key[:60]!r}: DeepSpeed would not find it there",
                expected="DeepSpeed's keys at the top level",
                do=f"check the inner object: jq '.[\"{key[:60]}\"]' {path} | toolkit check -",
            )


def refuse_other_file(data: Mapping[str, Any], path: Path, wanted: Role) -> None:
    """Raise ConfigError where `data`, read from `path` as the file of the role `wanted`, is another one."""
    found = role_of(data)
    if wanted == "arguments" and any(key in data for key in DEEPSPEEDS_OWN):
        found = "config"
    elif wanted == "arguments" and found == "config" and (not data or data.keys() & {*ARGUMENTS, *REMOVED}):
        found = "arguments"  # bf16 alone
    if found == wanted:
        return
    if wanted == "arguments" and not any(key in data for key in (*DEEPSPEEDS_OWN, *ACCELERATES_OWN)):
        raise ConfigError(
            f"{place_of(path)} holds none of TrainingArguments' names, but {first_few([repr(name[:60]) for name in data], 3)}",
            expected=EXAMPLES[wanted],
            do="write the arguments at the top level of that file",
        )
    own = next((key for key in (*DEEPSPEEDS_OWN, *ACCELERATES_OWN, *data) if key in data), "nothing")
    raise ConfigError(
        f"{place_of(path)} holds {own!r}: it is {NAMES[found]}, not {NAMES[wanted]}",
        expected=EXAMPLES[wanted],
        do=f"correct the path after {FLAGS[wanted].strip()}" if FLAGS[wanted] else f"name it as {FLAGS[found]}{path}",
    )
