"""The file of a recipe: docstring with both launch commands, one import, one `recipe = Recipe(...)`, `main(recipe)`."""

from __future__ import annotations

import contextlib
import json
import textwrap
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from toolkit.recipe.dotted import chosen, flat, section_class, sections_of
from toolkit.recipe.outputs import Launch
from toolkit.recipe.recipe import Recipe

WIDTH = 120
"""Longest line, that of `ruff format` in this project."""

ORDER = [
    "note",
    "model",
    "data",
    "task",
    "tuning",
    "batch",
    "optimizer",
    "schedule",
    "precision",
    "parallel",
    "checkpoint",
    "evaluation",
    "tracking",
    "launch",
    "steps",
    "epochs",
    "seed",
]
"""The order in which recipes name their parts."""


def launch_commands(launch: Launch, name: str) -> tuple[str, str]:
    """How the recipe `name` is started with `deepspeed` and with `accelerate launch`."""
    several = launch.hosts > 1
    machines = f"--hostfile hostfile --num_nodes {launch.hosts}" if several else f"--num_gpus {launch.devices}"
    rank = " --machine_rank N --main_process_ip HOST" if several else ""
    return (
        f"deepspeed -q {machines} recipes/{name}.py",
        f"accelerate launch --config_file ds_configs/{name}.yaml{rank} recipes/{name}.py",
    )


def file_text(
    recipe: Recipe, name: str, headline: str, *, keep: Collection[str] = (), comments: Mapping[str, Sequence[str]]
) -> str:
    """The file recipes/`name`.py, as `ruff format` leaves it.

    Fields stand there that are not at their default, and those named in `keep`; `comments` stand above the part that
    they are about ("batch", "epochs").
    """
    values = flat(recipe)
    keep = {name for name in keep if not name.endswith(".name")}  # the class says it
    parts = sections_of(chosen(values, keep), values, built=False)
    kinds = {part: section_class(part, values).__name__ for part, value in parts.items() if _is_section(value)}
    # As ruff sorts an import: what is all capitals (DPO) counts as a constant, which comes first.
    classes = sorted({"Recipe", *kinds.values()}, key=lambda name: (not name.isupper(), name))
    lines = [
        f'"""{_docstring(headline)}',
        "",
        *launch_commands(recipe.launch, name),
        *_several_hosts(recipe.launch),
        '"""',
        "",
        *_import([*classes, "main"]),
        "",
        "recipe = Recipe(",
    ]
    for part in sorted(parts, key=ORDER.index):
        for comment in comments.get(part, ()):
            lines += textwrap.wrap(comment, WIDTH, initial_indent="    # ", subsequent_indent="    # ")
        lines += _part(part, parts[part], kinds.get(part))
    return "\n".join([*lines, ")", "", 'if __name__ == "__main__":', "    main(recipe)", ""])


def _several_hosts(launch: Launch) -> list[str]:
    if launch.hosts == 1:
        return []
    numbers = ", ".join(map(str, range(launch.hosts))) if launch.hosts <= 8 else f"0 to {launch.hosts - 1}"
    return ["", f"The second command is for each host, with N = {numbers} and HOST the first one's address."]


def _is_section(value: object) -> bool:
    return isinstance(value, dict)


def _docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', "'")


def _import(names: Sequence[str]) -> list[str]:
    line = f"from toolkit import {', '.join(names)}"
    if _width(line) <= WIDTH:
        return [line]
    return ["from toolkit import (", *(f"    {name}," for name in names), ")"]


def _part(name: str, value: Any, kind: str | None) -> list[str]:
    """The lines of one part, a section where it has a `kind`."""
    if kind is None:
        return [f"    {name}={literal(value)},"]
    line = f"    {name}={kind}({', '.join(f'{field}={literal(inner)}' for field, inner in value.items())}),"
    if _width(line) <= WIDTH:
        return [line]
    return [f"    {name}={kind}(", *(line for field, inner in value.items() for line in _field(field, inner)), "    ),"]


def _field(name: str, value: Any) -> list[str]:
    line = f"        {name}={literal(value)},"
    if _width(line) <= WIDTH or not isinstance(value, dict):
        return [line]
    entries = [f"            {literal(key)}: {_entry(inner)}," for key, inner in value.items()]
    return [f"        {name}={{", *entries, "        },"]


def _width(line: str) -> int:
    """Columns of `line`: characters of East Asia and most pictures take two, for `ruff format` as well."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in line)


def literal(value: Any) -> str:
    """`value` as this project writes it: double quotes, 10_000, 1e-4."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {_entry(inner)}" for key, inner in value.items()) + "}"
    raise TypeError(f"no recipe field holds a {type(value).__name__}")


def _entry(value: Any) -> str:
    """A value of a mapping of names; JSON text of a list or an object, which is what such a field keeps, as the list or the object."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return _as_read(json.loads(value))
    return literal(value)


def _as_read(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_read, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {_as_read(inner)}" for key, inner in value.items()) + "}"
    return literal(value)


def _text(value: str) -> str:
    quote = "'" if value.count('"') > value.count("'") else '"'
    marks = [f"\\{mark}" if mark == quote else mark if mark in "\"'" else repr(mark)[1:-1] for mark in value]
    return quote + "".join(marks) + quote


def _float(value: float) -> str:
    """The shorter of 0.01 and 1e-2."""
    plain, scientific = repr(value), f"{value:.16e}"
    exponent = int(scientific.partition("e")[2])
    for places in range(17):
        short = f"{value:.{places}e}".partition("e")[0] + f"e{exponent}"
        if float(short) == value:
            return short if len(short) < len(plain) and not 0 < exponent < 4 else plain
    return plain
