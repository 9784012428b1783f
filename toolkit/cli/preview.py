"""What --preview N shows: training sequences as the model will see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from toolkit.data.encoding import Encoder
from toolkit.data.example import Example, Row
from toolkit.data.packing import best_fit, one_each
from toolkit.data.preview import preview
from toolkit.recipe import Recipe
from toolkit.train.inputs import load_task
from toolkit.train.progress import Display
from toolkit.train.rows import open_rows

ROWS_PER_SEQUENCE = 64
"""Rows looked at for each packed sequence shown."""


def print_preview(recipe: Recipe, count: int) -> int:
    """Print `count` sequences of the first rows of the training data, made as training makes them; returns the exit code."""
    capacity, packing = recipe.batch.sequence_length, recipe.data.packing
    tokenizer, task = load_task(recipe)
    display = Display(is_main=True)
    source, _ = open_rows(recipe, display.say)
    task.fit(source.rows)
    for line in task.remarks(source.rows):
        display.say(line)
    encoder = Encoder(task.encode, capacity, recipe.data.overlong)
    examples = _examples(source.rows, encoder, count, ROWS_PER_SEQUENCE * count if packing else 1)
    groups = (
        best_fit([len(example["input_ids"]) for example in examples], capacity) if packing else one_each(len(examples))
    )
    preview(tokenizer, [[examples[index] for index in group] for group in groups[:count]], stream=sys.stdout)
    if said := encoder.counts.describe():
        display.say(f"of the rows looked at: {said}")
    return 0


def _examples(rows: Iterable[Row], encoder: Encoder, count: int, least_rows: int) -> list[Example]:
    """At least `count` examples, from `least_rows` rows or from as many as that takes; fewer where the data ends."""
    examples: list[Example] = []
    number = 0
    for number, row in enumerate(rows, start=1):
        examples += encoder.examples(row, number)
        if number >= least_rows and len(examples) >= count:
            break
    encoder.check(number)
    return examples
