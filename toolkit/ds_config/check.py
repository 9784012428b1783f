"""Check one DeepSpeed configuration, as a mapping or as a file, against the schema and the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.ds_config.config_file import read_arguments, read_config
from toolkit.ds_config.file_text import place_of
from toolkit.ds_config.findings import Finding, sorted_findings
from toolkit.ds_config.rules import RULES, Context
from toolkit.ds_config.rules.trainer_values import TRAINER_DEFAULTS
from toolkit.ds_config.schema_top import TOP
from toolkit.ds_config.target import Device, Target
from toolkit.errors import ConfigError, first_few


def check_config(
    config: Mapping[str, Any],
    *,
    target: Target | None = None,
    device: Device | None = None,
    training_args: Mapping[str, Any] | None = None,
    file_findings: Sequence[Finding] = (),
) -> list[Finding]:
    """Findings about `config`, errors first, then by key, without duplicates; empty when it is sound.

    `target` adds the checks that need a world size and a device, `device` alone those that need no world size;
    `training_args`, the Hugging Face Trainer's arguments, those of its "auto" values and mismatches. `file_findings` is
    what was wrong with the file that `config` was read from.
    """
    context = Context(
        config, target, device or (target.device if target else None), training_args, tuple(file_findings)
    )
    # What a rule would conclude from a value of the wrong type is no second fault.
    wrong = {finding.where for finding in context.schema_findings if finding.rule == "wrong-type"}
    asked = [rule for rule in RULES if wrong.isdisjoint(rule.looks_at.split(", "))]
    return sorted_findings(finding for rule in asked for finding in rule.check(context))


def check_file(path: Path, *, target: Target | None = None, training_args_path: Path | None = None) -> list[Finding]:
    """Findings about the DeepSpeed JSON at `path`, read as DeepSpeed reads it.

    Raises ConfigError when a file is missing, unreadable, no JSON or no object.
    """
    config, file_findings = read_config(path)
    arguments = None if training_args_path is None else read_arguments(training_args_path)
    return check_config(config, target=target, training_args=arguments, file_findings=file_findings)


def refuse_arguments(config: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError where `config`, read from `path` as a DeepSpeed JSON, holds the Trainer's arguments."""
    arguments = [key for key in config if key in TRAINER_DEFAULTS and key not in TOP.keys]
    # bf16 and others are keys of both: an object here, true or false there.
    own = [
        key for key in config if key in TOP.keys and (key not in TRAINER_DEFAULTS or isinstance(config[key], Mapping))
    ]
    if arguments and not own:
        raise ConfigError(
            f"{place_of(path)} holds the Trainer's arguments ({first_few(arguments, 3)}), not a DeepSpeed JSON",
            expected="the DeepSpeed JSON that the Trainer is given as `deepspeed`",
            do=f"name that file, and this one behind it: --training-args {path}",
        )
