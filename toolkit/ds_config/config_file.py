"""Read a DeepSpeed JSON as DeepSpeed reads it, and name what other readers would stumble over."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import hjson

from toolkit.ds_config.findings import Finding
from toolkit.errors import ConfigError, did_you_mean

FILE_RULES = {
    "duplicate-key": "DeepSpeed refuses a key that stands twice; other readers silently take the last",
    "not-strict-json": "DeepSpeed reads Hjson (comments, trailing commas), accelerate and the Trainer strict JSON only",
}
"""Rule ids of the file itself -> why."""


def read_config(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The object in the file at `path`, and what is wrong with the file itself (FILE_RULES).

    Raises ConfigError when the file is missing, unreadable, no JSON or no object.
    """
    text = _text(path)
    if not text.strip():
        raise _no_object(f"{path} is empty")
    duplicates: list[Finding] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                what = f"the key {name!r} stands {count} times in one object"
                duplicates.append(Finding(name, "duplicate-key", what, "each key once", "keep one of them"))
        return dict(pairs)

    found: list[Finding] = []
    try:
        config = json.loads(text, object_pairs_hook=collect, parse_constant=_no_constant)
    except ValueError as strict:
        duplicates.clear()
        config = _loose(path, text, strict, collect)
        found.append(_not_strict(strict))
    if not isinstance(config, dict):
        raise _no_object(f"{path} holds {_kind(config)}")
    return config, found + duplicates


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise ConfigError(
            f"{path} does not exist{did_you_mean(path.name, beside)}",
            expected="a DeepSpeed JSON file",
            do="correct the path",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{path} cannot be read: {reason}", expected="a readable JSON file", do="correct the path"
        ) from None


def _loose(path: Path, text: str, strict: ValueError, collect: Any) -> Any:
    """`text` as Hjson, DeepSpeed's own dialect. Raises ConfigError with the line when it is not even that."""
    try:
        # Hjson takes bare words for a string; what is no object is refused by the caller.
        return hjson.loads(text, object_pairs_hook=collect)
    except ValueError as loose:
        line = getattr(strict, "lineno", None)
        place = f"{path}, line {line}" if line else str(path)
        raise ConfigError(
            f"{place} is not JSON: {getattr(strict, 'msg', strict)} (as Hjson: {loose})",
            expected="a JSON object {...}",
            do="correct the file at that line",
        ) from None


def _not_strict(error: ValueError) -> Finding:
    line = getattr(error, "lineno", None)
    place = f"line {line}: " if line else ""
    what = f"{place}{getattr(error, 'msg', error)}"
    return Finding(
        "",
        "not-strict-json",
        f"the file is Hjson, not JSON ({what})",
        "strict JSON",
        "remove comments and trailing commas, quote all keys",
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _no_object(what: str) -> ConfigError:
    return ConfigError(
        what, expected="one JSON object {...} with DeepSpeed's keys", do="correct the file, or name another one"
    )


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
