"""Check one DeepSpeed configuration, as a mapping or as files, against the schema and the rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.ds_config.config_file import read_config, read_other
from toolkit.ds_config.files import Files, together
from toolkit.ds_config.findings import Finding, sorted_findings
from toolkit.ds_config.rules import RULES, Context, Rule
from toolkit.ds_config.target import Device, Target


def check_config(
    config: Mapping[str, Any],
    *,
    target: Target | None = None,
    device: Device | None = None,
    training_args: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Findings about `config`, errors first, then by key, without duplicates; empty when it is sound.

    `target` adds the checks that need a world size and a device, `device` alone those that need no world size;
    `training_args`, the Hugging Face Trainer's arguments, those of its "auto" values and mismatches.
    """
    return _findings(Context(config, target, device or (target.device if target else None), training_args), RULES)


def check_files(files: Files, *, target: Target | None = None, device: Device | None = None) -> list[Finding]:
    """Findings about `files` and what they make together, each with its place."""
    config, arguments, accelerate = files.config, files.arguments, files.accelerate
    context = Context(
        {} if config is None else config.data,
        target,
        device or (target.device if target else None),
        None if arguments is None else arguments.data,
        None if accelerate is None else accelerate.data,
        tuple(replace(found, role=role) for role, file in files.given for found in file.findings) + files.findings,
        files.is_made,
    )
    asked = RULES if config is not None else [rule for rule in RULES if rule.role != "config"]
    found = _findings(context, asked)
    return sorted_findings(
        placed for role, file in files.given for placed in file.placed(item for item in found if item.role == role)
    )


def _findings(context: Context, rules: Sequence[Rule]) -> list[Finding]:
    # What a rule would conclude from a value of the wrong type is no second fault.
    wrong = {finding.where for finding in context.schema_findings if finding.rule == "wrong-type"}
    asked = [rule for rule in rules if not _reads(rule.looks_at.split(", "), wrong)]
    return sorted_findings(finding for rule in asked for finding in rule.check(context))


def _reads(keys: Sequence[str], wrong: Collection[str]) -> bool:
    """Whether one of `keys` is among `wrong`, or stands in a section that is."""
    return any(key == other or key.startswith(f"{other}.") for other in wrong for key in keys)


def check_file(path: Path, *, target: Target | None = None, training_args_path: Path | None = None) -> list[Finding]:
    """Findings about the file at `path`: a DeepSpeed JSON, the Trainer's arguments or accelerate's file.

    Raises ConfigError when a file is missing, unreadable, no JSON or no object.
    """
    arguments = None if training_args_path is None else read_other(training_args_path, "arguments")
    return check_files(together(read_config(path), arguments=arguments), target=target)
