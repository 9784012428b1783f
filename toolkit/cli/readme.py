"""The parts of README.md that are made from the code: recipes, rules, files."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from toolkit.ds_config.rules import RULES
from toolkit.errors import ConfigError
from toolkit.recipe.load import load_recipe

BEGIN, END = "<!-- begin {} (toolkit config --write) -->", "<!-- end {} -->"


def updated(text: str, root: Path) -> str:
    """`text` of README.md with every generated part made anew. Raises ConfigError when a part has lost its markers."""
    for name, make in PARTS.items():
        begin, end = BEGIN.format(name), END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ConfigError(
                f"README.md: the markers of the part {name!r}",
                expected=f"one {begin} and one {end}",
                do="put them back",
            )
        before, rest = text.split(begin)
        text = before + begin + "\n" + make(root) + "\n" + end + rest.split(end)[1]
    return text


def _recipes(root: Path) -> str:
    rows = ["| recipe | devices | what it shows |", "|---|---|---|"]
    for path in sorted((root / "recipes").glob("*.py")):
        recipe = load_recipe(path)
        hosts = f" on {recipe.launch.hosts} hosts" if recipe.launch.hosts > 1 else ""
        rows.append(f"| `{path.stem}` | {recipe.launch.world_size}{hosts} | {recipe.note} |")
    return "\n".join(rows)


def _rules(root: Path) -> str:
    rows = ["| rule | looks at | why |", "|---|---|---|"]
    for rule in RULES:
        cells = (f"`{rule.id}`", rule.looks_at, rule.why)
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return f"<details><summary>{len(RULES)} rules</summary>\n\n" + "\n".join(rows) + "\n\n</details>"


def _files(root: Path) -> str:
    lines = []
    for folder in sorted(
        path for path in (root / "toolkit").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    ):
        lines.append(f"toolkit/{folder.name + '/':<25}{_headline(folder / '__init__.py')}")
        lines += [
            f"    {path.name:<29}{_headline(path)}"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py" and folder.name not in FOLDED
        ]
    return "```\n" + "\n".join(lines) + "\n```"


FOLDED = ("ds_config", "data", "cli")
"""Packages of which the map names only the purpose."""


def _headline(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].rstrip(".") if text else ""


PARTS: dict[str, Callable[[Path], str]] = {"recipes": _recipes, "rules": _rules, "files": _files}
