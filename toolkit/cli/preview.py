"""What --preview N shows: training sequences as the model will see them."""

from __future__ import annotations

import itertools
import sys

from toolkit.data.packing import best_fit, one_each
from toolkit.data.preview import preview
from toolkit.recipe import Recipe
from toolkit.train.inputs import open_training_rows

ROWS_PER_SEQUENCE = 64
"""Rows looked at for each packed sequence shown."""


def print_preview(recipe: Recipe, count: int) -> int:
    """Print `count` sequences of the training data; returns the exit code."""
    data = recipe.data
    tokenizer, task, rows = open_training_rows(recipe)
    task.fit(rows)
    wanted = itertools.islice(rows, count * (ROWS_PER_SEQUENCE if data.packing else 1))
    examples = [example for row in wanted for example in task.encode(row)]
    examples = [example for example in examples if len(example["input_ids"]) <= recipe.batch.sequence_length]
    lengths = [len(example["input_ids"]) for example in examples]
    groups = best_fit(lengths, recipe.batch.sequence_length) if data.packing else one_each(len(examples))
    preview(tokenizer, [[examples[index] for index in group] for group in groups[:count]], stream=sys.stdout)
    return 0
