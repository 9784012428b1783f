"""`toolkit check --explain`: what DeepSpeed does with each key, as a table to read or as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.ds_config.config_file import ConfigFile
from toolkit.ds_config.files import Files
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.meaning import Meaning, meanings
from toolkit.ds_config.rules import Context
from toolkit.ds_config.target import Target
from toolkit.ds_config.values import show
from toolkit.errors import plural

MOST_ROWS = 500
"""So many are printed."""

WIDTH = 150
"""Columns where the output is no terminal."""


def explained(files: Files, target: Target | None) -> list[Meaning]:
    """What DeepSpeed does with the configuration that `files` make; nothing where they make none."""
    if files.config is None:
        return []
    arguments, accelerate = files.arguments, files.accelerate
    context = Context(
        files.config.data,
        target,
        None if target is None else target.device,
        None if arguments is None else arguments.data,
        None if accelerate is None else accelerate.data,
        is_made=files.is_made,
    )
    return meanings(context)


def print_meanings(found: Sequence[Meaning], config: ConfigFile) -> None:
    """The keys that are written with their lines, then those that are missing."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    for title, is_written in (("what is written", True), ("what is missing and matters", False)):
        table = Table(
            title=f"{config.name}: {title}", title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        for head in ("line", "key", "value", "DeepSpeed") if is_written else ("key", "DeepSpeed"):
            table.add_column(head, overflow="fold", header_style="bold")
        rows = [meaning for meaning in found if meaning.is_written == is_written]
        for row in _rows(rows[:MOST_ROWS], config):
            table.add_row(*map(Text, row))
        with console.capture() as printed:
            console.print(table)
        print("\n".join(line.rstrip() for line in printed.get().splitlines()))
        more = (
            f"... and {plural(len(rows) - MOST_ROWS, 'more key')} (--json lists them all)\n"
            if len(rows) > MOST_ROWS
            else ""
        )
        print(more)


def _rows(found: Sequence[Meaning], config: ConfigFile) -> Iterator[list[str]]:
    lines = _lines(found, config)
    for meaning in found:
        if not meaning.is_written:
            yield [meaning.where, meaning.does]
            continue
        value = "" if isinstance(meaning.value, dict) else show(meaning.value)
        filled = "" if meaning.filled is None else f" -> {show(meaning.filled)}"
        yield [str(lines[meaning.where]), meaning.where, f"{value}{filled}", meaning.does]


def _lines(found: Sequence[Meaning], config: ConfigFile) -> dict[str, int | None]:
    """Dotted key -> its line, of those that are written."""
    written = [Finding(meaning.where, "", "", "", "") for meaning in found if meaning.is_written]
    return {asked.where: placed.line for asked, placed in zip(written, config.placed(written), strict=True)}


def as_data(found: Sequence[Meaning], config: ConfigFile | None) -> list[dict[str, Any]]:
    """The same for a program, each key with its line."""
    lines = {} if config is None else _lines(found, config)
    return [{**asdict(meaning), "line": lines.get(meaning.where)} for meaning in found]
