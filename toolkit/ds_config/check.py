"""Check one DeepSpeed configuration, as a mapping or as a file, against the schema and the rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.ds_config.config_file import ConfigFile, read_arguments, read_config
from toolkit.ds_config.findings import Finding, sorted_findings
from toolkit.ds_config.rules import RULES, Context
from toolkit.ds_config.target import Device, Target


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
    asked = [rule for rule in RULES if not _reads(rule.looks_at.split(", "), wrong)]
    return sorted_findings(finding for rule in asked for finding in rule.check(context))


def _reads(keys: Sequence[str], wrong: Collection[str]) -> bool:
    """Whether one of `keys` is among `wrong`, or stands in a section that is."""
    return any(key == other or key.startswith(f"{other}.") for other in wrong for key in keys)


def check_files(
    file: ConfigFile,
    *,
    target: Target | None = None,
    device: Device | None = None,
    arguments: ConfigFile | None = None,
) -> list[Finding]:
    """Findings about the DeepSpeed JSON `file`, and the Trainer's `arguments` it is used with, each with its place."""
    found = check_config(
        file.data,
        target=target,
        device=device,
        training_args=None if arguments is None else arguments.data,
        file_findings=file.findings,
    )
    files = {"config": file, "arguments": arguments}
    placed = [
        finding
        for role, of in files.items()
        if of is not None
        for finding in of.placed(item for item in found if item.role == role)
    ]
    return sorted_findings(placed)


def check_file(path: Path, *, target: Target | None = None, training_args_path: Path | None = None) -> list[Finding]:
    """Findings about the DeepSpeed JSON at `path`, read as DeepSpeed reads it.

    Raises ConfigError when a file is missing, unreadable, no JSON or no object.
    """
    arguments = None if training_args_path is None else read_arguments(training_args_path)
    return check_files(read_config(path), target=target, arguments=arguments)
