"""Read a DeepSpeed JSON as DeepSpeed reads it, and name what other readers would stumble over."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import hjson

from toolkit.ds_config.file_text import place_of, read_text
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.other_files import refuse_other_arguments
from toolkit.errors import ConfigError

FILE_RULES = {
    "duplicate-key": "DeepSpeed refuses a key that stands twice; other readers silently take the last",
    "not-strict-json": "DeepSpeed reads Hjson (comments, trailing commas), accelerate and the Trainer strict JSON only",
}
"""Rule ids of the file itself -> why."""


def read_config(path: Path, wanted: str = "a DeepSpeed JSON file") -> tuple[dict[str, Any], list[Finding]]:
    """The object in the file at `path` ("-": standard input), and what is wrong with the file itself (FILE_RULES).

    Raises ConfigError when the file is missing, unreadable, no JSON or no object.
    """
    name, text = place_of(path), read_text(path, wanted)
    if not text.strip():
        raise _no_object(f"{name} is empty", wanted)
    duplicates: list[Finding] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    what = f"the key {key!r} stands {count} times in one object"
                    duplicates.append(Finding(key, "duplicate-key", what, "each key once", "keep one of them"))
        return made

    found: list[Finding] = []
    try:
        config = json.loads(text, object_pairs_hook=collect, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as strict:
        if path.suffix == ".py":  # Hjson would take the whole file for a text
            raise ConfigError(
                f"{path} is Python, not JSON",
                expected=wanted,
                do=f"a recipe's: toolkit config {path} | toolkit check -",
            ) from None
        duplicates.clear()
        config = _loose(path, text, strict, collect)
        found.append(_not_strict(strict, text))
    if not isinstance(config, dict):
        raise _no_object(f"{name} holds {_kind(config)}", wanted)
    return config, found + duplicates


def read_arguments(path: Path) -> dict[str, Any]:
    """The Hugging Face TrainingArguments in the JSON file at `path`.

    Raises ConfigError as `read_config` does, for what is wrong with the file, and for another kind of file.
    """
    arguments, of_file = read_config(path, "a JSON file of the Trainer's arguments")
    refuse_other_arguments(arguments, path)
    if of_file:
        raise ConfigError(f"{place_of(path)}: {of_file[0].what}", expected=of_file[0].expected, do=of_file[0].do)
    return arguments


def _loose(path: Path, text: str, strict: ValueError, collect: Any) -> Any:
    """`text` as Hjson, DeepSpeed's own dialect. Raises ConfigError with the line when it is not even that."""
    try:
        # Hjson takes bare words for a string; what is no object is refused by the caller.
        return hjson.loads(text, object_pairs_hook=collect)
    except RecursionError:
        raise _too_deep(place_of(path)) from None
    except (ValueError, OverflowError, IndexError) as loose:  # IndexError: a comment or a text that never ends
        line = getattr(strict, "lineno", None)
        place = f"{place_of(path)}, line {line}" if line else place_of(path)
        raise ConfigError(
            f"{place} is not JSON: {getattr(strict, 'msg', strict)} {_as_hjson(loose)}",
            expected="a JSON object {...}",
            do="correct the file at that line" if line else "correct the file",
        ) from None


def _as_hjson(error: Exception) -> str:
    text = "it ends within a text or a comment" if isinstance(error, IndexError) else str(error).partition("\n")[0]
    return f"(as Hjson: {text if len(text) <= 200 else text[:197] + '...'})"


def _not_strict(error: ValueError, text: str) -> Finding:
    if text.startswith("\ufeff"):
        what = "the file begins with a byte-order mark, at which strict readers stop"
        return Finding("", "not-strict-json", what, "UTF-8 without the mark", "save it without byte-order mark")
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


def _no_object(what: str, wanted: str) -> ConfigError:
    return ConfigError(what, expected=f"{wanted}: one object {{...}}", do="correct the file, or name another one")


def _too_deep(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is nested too deeply: its objects or lists stand in one another hundreds of times",
        expected="a DeepSpeed JSON, at most 8 levels deep; DeepSpeed's own reader stops at such a file",
        do="look for a bracket that is opened again and again",
    )


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
