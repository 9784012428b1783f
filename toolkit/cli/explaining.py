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
        for row in _rows(found, config, is_written=is_written):
            table.add_row(*map(Text, row))
        with console.capture() as printed:
            console.print(table)
        print("\n".join(line.rstrip() for line in printed.get().splitlines()), end="\n\n")


def _rows(found: Sequence[Meaning], config: ConfigFile, *, is_written: bool) -> Iterator[list[str]]:
    of = dict(_lines(found, config))
    for meaning in found:
        if meaning.is_written == is_written:
            value = "" if isinstance(meaning.value, dict) else show(meaning.value)
            filled = "" if meaning.filled is None else f" -> {show(meaning.filled)}"
            row = [meaning.where, f"{value}{filled}", meaning.does]
            yield [str(of.get(meaning.where, "")), *row] if is_written else [meaning.where, meaning.does]


def _lines(found: Sequence[Meaning], config: ConfigFile) -> Iterator[tuple[str, int | None]]:
    written = [meaning for meaning in found if meaning.is_written]
    places = config.placed(Finding(meaning.where, "", "", "", "") for meaning in written)
    return ((meaning.where, place.line) for meaning, place in zip(written, places, strict=True))


def as_data(found: Sequence[Meaning], config: ConfigFile | None) -> list[dict[str, Any]]:
    """The same for a program, each key with its line."""
    lines = {} if config is None else dict(_lines(found, config))
    return [{**asdict(meaning), "line": lines.get(meaning.where)} for meaning in found]
