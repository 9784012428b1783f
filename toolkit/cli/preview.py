"""What --preview N shows: training sequences as the model will see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from toolkit.data.encoding import Encoder
from toolkit.data.example import Example, Row
from toolkit.data.forms.recognised import recognised_lines
from toolkit.data.packing import best_fit, one_each
from toolkit.data.preview import preview
from toolkit.data.reading.row_names import RowName
from toolkit.data.reading.sources import Source
from toolkit.recipe import Recipe
from toolkit.tasks.base import Task
from toolkit.tasks.encoder import encoder_of
from toolkit.train.inputs import fit, load_task
from toolkit.train.progress import Display
from toolkit.train.rows import open_rows
from toolkit.train.unused import unused_remark

ROWS_PER_SEQUENCE = 64
"""Rows looked at for each packed sequence shown."""


def print_preview(recipe: Recipe, count: int) -> int:
    """Print `count` sequences of the first rows of each source, made as training makes them; returns the exit code."""
    task = load_task(recipe)
    display = Display(is_main=True)
    mixture, _ = open_rows(recipe, display.say, task.own_rows)
    fit(task, mixture, recipe)
    for line in task.remarks(mixture.rows, mixture.row_name("data.train")):
        display.say(line)
    for part in mixture.parts:
        if not mixture.is_plain:
            display.say(f"{part.location}, weight {part.weight:g}:")
        _print_part(recipe, task, part.source, mixture.part_row_name(part, "data.train"), count, display)
    return 0


def _print_part(recipe: Recipe, task: Task, source: Source, row_name: RowName, count: int, display: Display) -> None:
    capacity, packing = recipe.batch.sequence_length, recipe.data.packing
    encoder = encoder_of(
        task,
        source.rows,
        capacity,
        recipe.data.overlong,
        row_name=row_name,
        folder=source.folder,
        unreadable=recipe.data.unreadable,
    )
    least_rows, least_tokens = (ROWS_PER_SEQUENCE * count, count * capacity) if packing else (count, 1)
    examples, num_rows = _examples(source.rows, encoder, count, least_rows, least_tokens)
    groups = best_fit([task.size(example) for example in examples], capacity) if packing else one_each(len(examples))
    for line in recognised_lines(encoder.forms, first=True):
        display.say(line)
    preview(task, [[examples[index] for index in group] for group in groups[:count]], stream=sys.stdout)
    if said := encoder.counts.describe():
        display.say(f"of the {num_rows:,} rows looked at: {said}")
    remark = unused_remark("data.train", encoder.unused, num_rows, first=True)
    if remark is not None:
        display.say(remark)


def _examples(
    rows: Iterable[Row], encoder: Encoder, count: int, least_rows: int, least_tokens: int
) -> tuple[list[Example], int]:
    """The examples of the first rows, as many rows as it takes to reach all three numbers or all there are; and the rows."""
    examples: list[Example] = []
    number, tokens = 0, 0
    for number, row in enumerate(rows, start=1):
        found = encoder.examples(row, number)
        examples += found
        tokens += sum(map(encoder.kind.size, found))
        if number >= least_rows and len(examples) >= count and tokens >= least_tokens:
            break
    encoder.check(number)
    return examples, number
