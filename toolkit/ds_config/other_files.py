"""What people name in the place of a DeepSpeed JSON, or of the Trainer's arguments: each is called by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.ds_config.file_text import place_of
from toolkit.ds_config.schema_arguments import ARGUMENTS, REMOVED
from toolkit.ds_config.schema_top import TOP
from toolkit.errors import ConfigError, first_few

DEEPSPEEDS_OWN = ("zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size")
"""Keys that no TrainingArguments have."""

AN_EXAMPLE = 'a JSON of TrainingArguments, e.g. {"learning_rate": 2e-5, "bf16": true}'

ACCELERATES_OWN = ("compute_environment", "distributed_type", "deepspeed_config", "deepspeed_config_file")
"""Keys of the file that `accelerate config` writes."""


def refuse_other_files(config: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError where `config`, read from `path` as a DeepSpeed JSON, is another file that names one or is near one."""
    # bf16 and others are keys of both: an object in DeepSpeed's file, true or false among the arguments.
    own = [key for key in config if key in TOP.keys and (key not in ARGUMENTS or isinstance(config[key], Mapping))]
    if own:
        return
    _refuse_accelerates(config, path)
    for key, inner in config.items():
        if isinstance(inner, Mapping) and key not in TOP.keys and TOP.keys.keys() & inner.keys():
            raise ConfigError(
                f"{place_of(path)} holds a DeepSpeed configuration inside {key[:60]!r}: DeepSpeed would not find it there",
                expected="DeepSpeed's keys at the top level",
                do=f"check the inner object: jq '.[\"{key[:60]}\"]' {path} | toolkit check -",
            )
    arguments = [key for key in config if key in ARGUMENTS and key not in TOP.keys]
    if arguments:
        raise ConfigError(
            f"{place_of(path)} holds the Trainer's arguments ({first_few(arguments, 3)}), not a DeepSpeed JSON",
            expected="the DeepSpeed JSON that the Trainer is given as `deepspeed`",
            do=f"name that file, and this one behind it: --training-args {path}",
        )


def _refuse_accelerates(config: Mapping[str, Any], path: Path) -> None:
    named = [key for key in ACCELERATES_OWN if key in config]
    if named:
        raise ConfigError(
            f"{place_of(path)} holds {named[0]!r}: it is accelerate's file, not a DeepSpeed JSON",
            expected="the DeepSpeed JSON that it names as deepspeed_config_file",
            do="name that file; one that names none makes DeepSpeed's values from its own keys, of which nothing is checked here",
        )


def refuse_other_arguments(arguments: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError where `arguments`, read from `path` as the Trainer's, are something else."""
    foreign = [key for key in DEEPSPEEDS_OWN if key in arguments]
    if foreign:
        raise ConfigError(
            f"{place_of(path)} holds {foreign[0]!r}: it is a DeepSpeed JSON, not the Trainer's arguments",
            expected=AN_EXAMPLE,
            do="correct the path after --training-args",
        )
    if arguments and not arguments.keys() & {*ARGUMENTS, *REMOVED}:
        raise ConfigError(
            f"{place_of(path)} holds none of TrainingArguments' names, but {first_few([repr(name[:60]) for name in arguments], 3)}",
            expected=AN_EXAMPLE,
            do="write the arguments at the top level of that file",
        )
