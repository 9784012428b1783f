"""The DeepSpeed configuration that a DeepSpeed JSON, the Trainer's arguments and accelerate's file make together.

Each may name or hold the configuration: the arguments in `deepspeed`, accelerate's file in deepspeed_config_file or in the
keys of its block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.ds_config.accelerate_file import ORIGINS, is_deepspeeds, made_from_block, named_file
from toolkit.ds_config.config_file import ConfigFile, read_config
from toolkit.ds_config.findings import Finding, Role
from toolkit.ds_config.other_files import EXAMPLES, refuse_wrapped, role_of
from toolkit.errors import ConfigError

NAMING_RULES = {
    "named-file": "the Trainer and accelerate stop where the DeepSpeed JSON that they are told of is missing or unreadable",
    "two-configurations": "one DeepSpeed configuration is trained: the Trainer's own `deepspeed` wins over accelerate's file, "
    "and what else is there is ignored in silence (TrainingArguments.__post_init__)",
}
"""Rule ids of how the files name one another -> why."""


@dataclass(frozen=True)
class Files:
    """What was given, and the configuration that comes of it."""

    config: ConfigFile | None = None
    """None where nothing names or holds one."""
    arguments: ConfigFile | None = None
    accelerate: ConfigFile | None = None
    findings: tuple[Finding, ...] = ()
    """How the files name one another (NAMING_RULES)."""
    is_made: bool = False
    """accelerate makes the configuration from the keys of its own block."""

    @property
    def given(self) -> Iterator[tuple[Role, ConfigFile]]:
        """Each file with its role."""
        roles: tuple[tuple[Role, ConfigFile | None], ...] = (
            ("config", self.config),
            ("arguments", self.arguments),
            ("accelerate", self.accelerate),
        )
        return ((role, file) for role, file in roles if file is not None)


def together(file: ConfigFile, *, arguments: ConfigFile | None = None, accelerate: ConfigFile | None = None) -> Files:
    """`file`, whatever of the three it is, with the other two as far as they are given."""
    role = role_of(file.data)
    if role == "config":
        refuse_wrapped(file.data, file.path)
        if file.is_yaml:
            raise ConfigError(
                f"{file.name} is YAML, and DeepSpeed reads JSON",
                expected=EXAMPLES["config"],
                do="write it as JSON",
            )
        return _checked(Files(file, arguments, accelerate))
    if role == "arguments":
        return _completed(Files(None, file, accelerate))
    return _completed(Files(None, arguments, file))


def _completed(files: Files) -> Files:
    """`files` with the configuration that the arguments, else accelerate's file, name or hold."""
    arguments, accelerate = files.arguments, files.accelerate
    if arguments is not None and arguments.data.get("deepspeed"):
        files = _named(files, "arguments", arguments, "deepspeed", arguments.data["deepspeed"])
    elif accelerate is not None and named_file(accelerate.data):
        files = _named(files, "accelerate", accelerate, FILE_KEY, named_file(accelerate.data))
    elif accelerate is not None and is_deepspeeds(accelerate.data):
        data = made_from_block(accelerate.data, None if arguments is None else arguments.data)
        made = replace(accelerate, data=data, findings=(), origins=ORIGINS)
        files = replace(files, config=made, is_made=True)
    return _checked(files)


FILE_KEY = "deepspeed_config.deepspeed_config_file"


def _named(files: Files, role: Role, by: ConfigFile, where: str, value: object) -> Files:
    if isinstance(value, dict):
        return replace(files, config=by.part(where))
    if not isinstance(value, str):
        what = f"{where} is neither the name of a file nor an object"
        fault = Finding(where, "named-file", what, EXAMPLES["config"], "name the DeepSpeed JSON", role=role)
        return replace(files, findings=(fault,))
    if value.lstrip().startswith("{"):
        return _inline(files, role, by, where, value)
    try:
        config = read_config(beside(value, by))
        if config.is_yaml or role_of(config.data) != "config":
            raise ConfigError(f"{value} is no DeepSpeed JSON", expected=EXAMPLES["config"], do="name that file")
    except ConfigError as error:
        fault = Finding(where, "named-file", f"{where}: {error.what}", error.expected, error.do, role=role)
        return replace(files, findings=(fault,))
    return replace(files, config=config)


def _inline(files: Files, role: Role, by: ConfigFile, where: str, value: str) -> Files:
    """A configuration in a text, as the command line has it."""
    try:
        data = json.loads(value)
    except (ValueError, RecursionError) as error:
        what = f"{where} holds a text that is not JSON: {error}"
        fault = Finding(where, "named-file", what, EXAMPLES["config"], "correct it, or name a file", role=role)
        return replace(files, findings=(fault,))
    return replace(files, config=replace(by, data=data, findings=(), origins={"": where}))


def beside(name: str, by: ConfigFile) -> Path:
    """The file that `by` calls `name`: from the current folder as the training script reads it, else from beside `by`."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or path.exists() else by.path.parent / path


def _checked(files: Files) -> Files:
    return replace(files, findings=(*files.findings, *_second_configurations(files)))


def _second_configurations(files: Files) -> Iterator[Finding]:
    config, arguments, accelerate = files.config, files.arguments, files.accelerate
    if config is None:
        return
    told = None if arguments is None else arguments.data.get("deepspeed")
    if arguments is not None and told and config.path != arguments.path and not _is_named(told, arguments, config):
        what = f"deepspeed among the arguments is not {config.name}, and the Trainer reads that one alone"
        yield Finding(
            "deepspeed", "two-configurations", what, f"{config.name}", "name the same file twice", role="arguments"
        )
    if accelerate is None or not is_deepspeeds(accelerate.data) or files.is_made:
        return
    named = named_file(accelerate.data)
    if named is not None and not _is_named(named, accelerate, config):
        what = f"{FILE_KEY}={named!r} is not {config.name}" + (
            ": the Trainer reads its own `deepspeed`, and this one is ignored" if told else ""
        )
        do = "name the same file twice" if not told else "remove deepspeed_config_file, or name the same file"
        yield Finding(FILE_KEY, "two-configurations", what, f"{config.name}", do, role="accelerate")
    elif named is None and arguments is None:
        what = f"the file does not name {config.name}: accelerate makes a configuration of its own"
        do = f"write deepspeed_config_file: {config.name} in deepspeed_config"
        yield Finding("deepspeed_config", "two-configurations", what, f"{config.name}", do, role="accelerate")


def _is_named(value: object, by: ConfigFile, config: ConfigFile) -> bool:
    if not isinstance(value, str):
        return False
    path = beside(value, by)
    return path.exists() and config.path.exists() and path.samefile(config.path)
