"""Read accelerate's YAML as accelerate reads it, with a map of its keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from toolkit.ds_config.file_text import place_of
from toolkit.ds_config.places import DEEPEST, Node, NoMap, map_of_yaml
from toolkit.errors import ConfigError

LARGEST = 1 << 20
"""Characters, far more than accelerate writes."""

OWN_KEY = re.compile(r"^(?:compute_environment|distributed_type|deepspeed_config)[ \t]*:", re.MULTILINE)
"""A key of accelerate's file at the start of a line, without the quotes of JSON."""


def is_yaml(path: Path, text: str) -> bool:
    """Whether `text` is to be read as YAML: by the name of its file, else by accelerate's own keys in it."""
    if path.suffix in (".yaml", ".yml"):
        return True
    return OWN_KEY.search(text) is not None and not text.lstrip("\ufeff \t\r\n").startswith("{")


def read_yaml(path: Path, text: str) -> tuple[object, Node]:
    """What `text` holds, and where. Raises ConfigError, with the line where there is one."""
    name = place_of(path)
    if len(text) > LARGEST:
        raise _strange(name, f"it has more than {LARGEST >> 10} KiB")
    try:
        _follow(name, text)
        value, places = yaml.safe_load(text), map_of_yaml(text)
        json.dumps(value, default=str)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        refusal = ConfigError(
            f"{name}:{line} is not YAML: {what}" if line else f"{name} is not YAML: {what}",
            expected="the file that `accelerate config` writes",
            do="correct the file at that line" if line else "correct the file",
        )
        refusal.line = line
        raise refusal from None
    except (RecursionError, NoMap, ValueError, TypeError) as error:
        raise _strange(name, str(error)[:100]) from None
    return value, places


def _follow(name: str, text: str) -> None:
    """Raise ConfigError for what accelerate never writes and what can make a small text endless."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{name} has an alias (*name)", expected="plain values", do="write the value in its place"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _strange(name, "it is nested too deeply")


def _strange(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{name} cannot be followed: {reason}",
        expected="the file that `accelerate config` writes: keys with plain values, and blocks of them",
        do="correct the file",
    )
