"""Read a DeepSpeed JSON as DeepSpeed reads it, and name what other readers would stumble over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hjson

from toolkit.ds_config.edits import TIDY, remove
from toolkit.ds_config.file_text import place_of, read_text
from toolkit.ds_config.findings import Finding, Role
from toolkit.ds_config.other_files import EXAMPLES, refuse_other_file
from toolkit.ds_config.places import Lines, Member, Node, NoMap, chain_to, map_of, objects
from toolkit.ds_config.rewrite import tidied
from toolkit.ds_config.yaml_file import is_yaml, read_yaml
from toolkit.errors import ConfigError, first_few

MOST_TIMES = 20
"""So often a key may stand for --fix to keep one of them: each is searched for anew."""

FILE_RULES = {
    "duplicate-key": "DeepSpeed refuses a key that stands twice; other readers silently take the last",
    "not-strict-json": "DeepSpeed reads Hjson (comments, trailing commas), accelerate and the Trainer strict JSON only",
}
"""Rule ids of the file itself -> why."""


@dataclass(frozen=True)
class ConfigFile:
    """A file that was read: what it holds, and where in its text each key of that stands."""

    path: Path
    text: str
    data: dict[str, Any]
    followed: Node | None = None
    """Its map, where that was made already."""
    findings: tuple[Finding, ...] = ()
    """What is wrong with the file itself (FILE_RULES)."""
    is_yaml: bool = False
    prefix: str = ""
    """Where `data` is a part of the file: the dotted key of that, with a dot behind it."""
    origins: Mapping[str, str] | None = None
    """Where `data` was made from other keys of the file: those of `data` -> those of the file, "" for the rest."""

    @property
    def name(self) -> str:
        """How messages name it."""
        return place_of(self.path)

    @cached_property
    def map(self) -> Node:
        """Where its keys stand; most of the time that a long file takes."""
        return _followed(self.text) if self.followed is None else self.followed

    def placed(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """`findings` of this file with its name and the line and column of what they speak of."""
        lines = Lines(self.text)
        for found in findings:
            line, column = found.line, found.column
            where, fix = f"{self.prefix}{found.where}", tuple(edit.below(self.prefix) for edit in found.fix)
            if self.origins is not None:
                where, fix = _origin(self.origins, found.where), ()
            if line is None:
                chain = chain_to(self.map, where)
                line, column = lines.of(chain[-1].start if chain else self.map.start)
            yield replace(found, where=where, file=self.name, line=line, column=column, fix=fix)

    def again(self, text: str) -> ConfigFile:
        """The same file with another `text`. Raises ConfigError where that cannot be read."""
        return parse_config(self.path, text)

    def part(self, name: str) -> ConfigFile | None:
        """The object at its top-level key `name` as a configuration of its own; None where it is none."""
        inner = self.data.get(name)
        if not isinstance(inner, dict) or name not in self.map.by_name:
            return None
        return replace(self, data=inner, followed=self.map, findings=(), prefix=f"{name}.")


def read_config(path: Path, wanted: str = "a DeepSpeed JSON file") -> ConfigFile:
    """The object in the file at `path` ("-": standard input), and what is wrong with the file itself.

    Raises ConfigError when the file is missing, unreadable, no JSON or no object.
    """
    return parse_config(path, read_text(path, wanted), wanted)


def parse_config(path: Path, text: str, wanted: str = "a DeepSpeed JSON file") -> ConfigFile:
    """As `read_config`, of the `text` of the file at `path`."""
    name = place_of(path)
    if not text.strip():
        raise _no_object(f"{name} is empty", wanted)
    if is_yaml(path, text):
        value, places = read_yaml(path, text)
        if not isinstance(value, dict):
            raise _no_object(f"{name} holds {_kind(value)}", wanted)
        config = {str(key): inner for key, inner in value.items()}
        return ConfigFile(path, text, config, places, tuple(_duplicates(text, places)), is_yaml=True)
    loose: ValueError | None = None
    once = _EachOnce()
    try:
        config = json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as strict:
        if path.suffix == ".py":  # Hjson would take the whole file for a text
            raise ConfigError(
                f"{path} is Python, not JSON",
                expected=wanted,
                do=f"a recipe's: toolkit config {path} | toolkit check -",
            ) from None
        config = _loose(path, text, strict)
        loose = strict
    if not isinstance(config, dict):
        raise _no_object(f"{name} holds {_kind(config)}", wanted)
    if loose is None and once.so_far:
        return ConfigFile(path, text, config)
    places = _followed(text)
    found = [_not_strict(loose, text, places)] if loose is not None else []
    return ConfigFile(path, text, config, places, (*found, *_duplicates(text, places)))


class _EachOnce:
    """Makes a dictionary of the pairs of an object, and notes whether a key stood twice in any."""

    so_far = True

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        self.so_far = self.so_far and len(made) == len(pairs)
        return made


def _followed(text: str) -> Node:
    try:
        return map_of(text)
    except NoMap:  # read all the same: findings point to the file as a whole
        return Node(0, len(text), "object")


def _duplicates(text: str, places: Node) -> Iterator[Finding]:
    lines = Lines(text)
    for where, node in objects(places):
        named: dict[str, list[Member]] = {}
        for member in node.members:
            named.setdefault(member.name, []).append(member)
        for key, of in named.items():
            if len(of) > 1:
                at = [lines.of(member.start) for member in of]
                values = {_canonical(text[member.node.start : member.node.end]) for member in of}
                fix = (
                    (remove(f"{where}.{key}" if where else key, len(of) - 1),)
                    if len(values) == 1 and len(of) <= MOST_TIMES
                    else ()
                )
                whole, (line, column) = f"{where}.{key}" if where else key, at[-1]
                what = f"the key {whole[:100]!r} stands {len(of)} times in one object ({_lines_of(at)})"
                do = "keep one of them"
                yield Finding(whole, "duplicate-key", what, "each key once", do, line=line, column=column, fix=fix)


def _origin(origins: Mapping[str, str], where: str) -> str:
    """The key of the file from which that at `where` was made."""
    while where and where not in origins:
        where = where.rpartition(".")[0]
    return origins[where]


def _canonical(value: str) -> str:
    """The text of a value, the same for the same value."""
    try:
        return json.dumps(json.loads(value), sort_keys=True)
    except (ValueError, RecursionError):
        return value


def _lines_of(places: Sequence[tuple[int, int]]) -> str:
    """Of several keys."""
    numbers = list(dict.fromkeys(line for line, _ in places))
    return f"line {numbers[0]}" if len(numbers) == 1 else f"lines {first_few([str(number) for number in numbers], 3)}"


def read_other(path: Path, role: Role) -> ConfigFile:
    """The file of the Trainer's arguments, or accelerate's, at `path`.

    Raises ConfigError as `read_config` does, and for another kind of file.
    """
    file = read_config(path, EXAMPLES[role])
    refuse_other_file(file.data, path, role)
    return file


def _loose(path: Path, text: str, strict: ValueError) -> Any:
    """`text` as Hjson, DeepSpeed's own dialect. Raises ConfigError with the line when it is not even that."""
    try:
        # Hjson takes bare words for a string; what is no object is refused by the caller.
        return hjson.loads(text, object_pairs_hook=dict)
    except RecursionError:
        raise _too_deep(place_of(path)) from None
    except (ValueError, OverflowError, IndexError) as loose:  # IndexError: a comment or a text that never ends
        line = getattr(strict, "lineno", None)
        place = f"{place_of(path)}:{line}" if line else place_of(path)
        error = ConfigError(
            f"{place} is not JSON: {getattr(strict, 'msg', strict)} {_as_hjson(loose)}",
            expected="a JSON object {...}",
            do="correct the file at that line" if line else "correct the file",
        )
        error.line = line
        raise error from None


def _as_hjson(error: Exception) -> str:
    text = "it ends within a text or a comment" if isinstance(error, IndexError) else str(error).partition("\n")[0]
    return f"(as Hjson: {text if len(text) <= 200 else text[:197] + '...'})"


def _not_strict(error: ValueError, text: str, places: Node) -> Finding:
    fix = (TIDY,) if _is_strict(tidied(text, places)) else ()
    if text.startswith("\ufeff"):
        what = "the file begins with a byte-order mark, at which strict readers stop"
        do = "save it without byte-order mark"
        return Finding("", "not-strict-json", what, "UTF-8 without the mark", do, line=1, column=1, fix=fix)
    line, column = getattr(error, "lineno", None), getattr(error, "colno", None)
    place = f"line {line}: " if line else ""
    what = f"{place}{getattr(error, 'msg', error)}"
    return Finding(
        "",
        "not-strict-json",
        f"the file is Hjson, not JSON ({what})",
        "strict JSON",
        "remove comments and trailing commas, quote all keys",
        line=line,
        column=column,
        fix=fix,
    )


def _is_strict(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


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
