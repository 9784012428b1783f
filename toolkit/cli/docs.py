"""The pages of docs/ that are made from the code: recipes, fields, verbs, rules, files. Imports no torch."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import toolkit
from toolkit.cli.flag_errors import OPTIONS
from toolkit.cli.flags import Invocation
from toolkit.ds_config import golden
from toolkit.ds_config.rules import RULES
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import CHOICES
from toolkit.recipe.effect import acts_when
from toolkit.recipe.field_type import describe_field
from toolkit.recipe.load import load_recipe
from toolkit.recipe.meanings import meanings

ROOT, FOLDER = Path(), Path("docs")
MARK = "<!-- Written by `toolkit config --write`: change the code, not this page. -->"


def in_checkout() -> bool:
    """Whether the working directory holds this package's own sources: nobody else's docs/ is written."""
    return (ROOT / "toolkit").resolve() == Path(toolkit.__file__).parent


def pages(root: Path = ROOT) -> dict[str, str]:
    """File name -> text of every generated page, for the checkout at `root`."""
    return {name: f"{MARK}\n\n{make(root).strip()}\n" for name, make in PAGES.items()}


def write() -> list[str]:
    """Make the generated pages of docs/ anew; returns the names that changed."""
    return golden.write_files(pages(), FOLDER, _generated(FOLDER))


def verify() -> int:
    """Number of generated pages in docs/; ConfigError when one is missing, stale or made from nothing any more."""
    return golden.verify_files(pages(), FOLDER, _generated(FOLDER), "part of the code")


def _generated(folder: Path) -> list[Path]:
    """What bears the mark, and what is about to be overwritten."""
    return [
        path
        for path in sorted(folder.glob("*.md"))
        if path.name in PAGES or path.read_text(encoding="utf-8").startswith(MARK)
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; line breaks and bars inside a cell are kept from ending it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines
    )


def _recipes(root: Path) -> str:
    rows = []
    for path in sorted((root / "recipes").glob("*.py")):
        recipe = load_recipe(path)
        hosts = f" on {recipe.launch.hosts} hosts" if recipe.launch.hosts > 1 else ""
        model = recipe.model.path or f"{recipe.model.architecture}, from scratch"
        link = f"[`{path.stem}`](../recipes/{path.name})"
        rows.append([link, f"{recipe.launch.world_size}{hosts}", f"`{model}`", f"`{recipe.data.train}`", recipe.note])
    return f"""# Recipes

Every recipe is a Python file in `recipes/`. Its first lines hold the two commands that start it, and
[ds_configs/](../ds_configs) holds what it renders to: the DeepSpeed JSON, the YAML of `accelerate launch` and, for
several hosts, a SLURM script.

{_table(["recipe", "processes", "model", "data", "what it shows"], rows)}"""


def _fields(root: Path) -> str:
    parts, plain = [], {}
    for name, field in Recipe.model_fields.items():
        if name in CHOICES:
            parts.append(
                f"## {name}\n\n{inspect.getdoc(CHOICES[name])} One of the following, told apart by `{name}.name`."
            )
            parts += [_section(f"### {kind.__name__}", kind, name) for kind in CHOICES[name].kinds.values()]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts.append(_section(f"## {name}", field.annotation, name))
        else:
            plain[name] = field
    return f"""# Recipe fields

Every field of a recipe, by section. On the command line a field is a flag with its dotted name:
`--optimizer.learning_rate 1e-4`, `--data.packing False`. A field that was changed and can have no effect is refused.

## The run

{_field_table(plain, Recipe, "")}

## Flags of a start

These are no part of the recipe.

{_table(["flag", "default", "meaning"], _start_flags())}

{chr(10).join(f"{part}{chr(10)}" for part in parts)}"""


def _section(title: str, kind: type[BaseModel], name: str) -> str:
    return f"{title}\n\n{inspect.getdoc(kind)}\n\n{_field_table(kind.model_fields, kind, f'{name}.')}"


def _field_table(found: Mapping[str, Any], kind: type[BaseModel], prefix: str) -> str:
    told, rows = meanings(kind), []
    for name, field in found.items():
        acts = acts_when(f"{prefix}{name}", kind)
        condition = f" Acts with {acts.needs} only." if acts else ""
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        rows.append([f"`{prefix}{name}`", describe_field(field), default, f"{told[name]}{condition}"])
    return _table(["field", "accepts", "default", "meaning"], rows)


def _start_flags() -> Iterator[list[str]]:
    told = meanings(Invocation)
    for field in fields(Invocation):
        if field.name in OPTIONS:
            default = "`runs/RECIPE`" if field.default is MISSING else f"`{field.default!r}`"
            yield [f"`--{field.name}`", default, told[field.name]]


def _verbs(root: Path) -> str:
    from toolkit.cli.verbs import VERBS, parser  # its table names the verb that writes this page

    subparsers = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = []
    for name, (summary, _, examples) in VERBS.items():
        lines = [example.partition("   ") for example in examples]
        block = "\n".join(
            f"toolkit {name} {words}".rstrip() + (f"    # {why.strip()}" if why else "") for words, _, why in lines
        )
        flags = _table(["argument", "meaning"], _arguments(subparsers.choices[name]))
        parts.append(f"## toolkit {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n```bash\n{block}\n```\n\n{flags}\n")
    return "# Verbs\n\nWhat `toolkit VERB --help` says. Flags are accepted with `-` and `_` alike.\n\n" + "\n".join(
        parts
    )


def _arguments(verb: argparse.ArgumentParser) -> Iterator[list[str]]:
    for action in verb._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
        flag = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
        yield [f"`{flag}{f' {value}' if action.option_strings and action.nargs != 0 else ''}`", action.help or ""]


def _rules(root: Path) -> str:
    rows = [[f"`{rule.id}`", rule.severity, rule.looks_at, rule.why] for rule in RULES]
    return f"""# Rules

The {len(RULES)} rules that `toolkit check`, `toolkit config` and every start apply to a DeepSpeed configuration.
[checking.md](checking.md) says how to use them.

{_table(["rule", "usually", "looks at", "why"], rows)}"""


def _files(root: Path) -> str:
    package = root / "toolkit"
    parts = [f"## toolkit\n\n{_headline(package / '__init__.py')}\n\n{_file_table(package)}\n"]
    for inside in sorted(package.rglob("__init__.py")):
        folder = inside.parent
        if folder != package:
            parts.append(f"## {folder.relative_to(root)}\n\n{_headline(inside)}\n\n{_file_table(folder)}\n")
    return f"""# Where things are

Every file with its first line. Imports point down only:
`cli > doctor, parity, draft > train > checkpoint > engine > tasks > models, data > ds_config > recipe > storage > errors`. Only `engine` imports
DeepSpeed; `ds_config`, `recipe`, `storage` and `errors` import no torch.

{chr(10).join(parts)}
## benchmarks

The measurements of [proof.md](proof.md).

{_file_table(root / "benchmarks")}"""


def _file_table(folder: Path) -> str:
    rows = [
        [f"[`{path.name}`](../{folder.as_posix()}/{path.name})", _headline(path)]
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    ]
    return _table(["file", "purpose"], rows) if rows else ""


def _headline(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0] if text else ""


PAGES: dict[str, Callable[[Path], str]] = {
    "recipes.md": _recipes,
    "fields.md": _fields,
    "verbs.md": _verbs,
    "rules.md": _rules,
    "files.md": _files,
}
"""File name in docs/ -> what makes it from the checkout."""
