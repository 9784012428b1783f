"""Rows for a rehearsal whose data is elsewhere: random words or noise, in the usual columns of its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.words import write_rows
from toolkit.errors import DataError, SourceAbsent
from toolkit.recipe import Data, Recipe
from toolkit.recipe.tasks.usual import on_usual_columns
from toolkit.rehearsal.made_up_media import write_images, write_questions, write_recordings

ROWS, HELD_OUT = 96, 8
LONGEST = 48
"""Words of a row."""
SEQUENCE_LENGTH = 256
VOCABULARY = 256
"""Different words."""

MEDIA = {
    "image_classification": (write_images, ""),
    "image_text_to_text": (write_questions, "rows.jsonl"),
    "speech_ctc": (write_recordings, "rows.jsonl"),
    "speech_seq2seq": (write_recordings, "rows.jsonl"),
}
"""Task -> what writes its rows into a folder, and the file there that holds them; the folder itself where it is empty."""


def write_made_up(recipe: Recipe, folder: Path, error: SourceAbsent) -> tuple[Data, Any, int]:
    """Write rows for the task of `recipe` to `folder`; the sections for data and task that read them, and their length.

    `error` says why. Raises DataError for a task of which no rows can be made up.
    """
    task, length = recipe.task, recipe.batch.sequence_length
    if task.brings_model or not type(task).__module__.startswith("toolkit.recipe."):
        raise DataError(
            f"{error.what}; and no rows can be made up for task.name={task.name!r}",
            expected=error.expected,
            do=f"{error.do}, or copy a few rows here and pass --data.train FILE",
        )
    usual = on_usual_columns(task)
    places = {
        name: _written(recipe, usual, folder / name, count) for name, count in (("train", ROWS), ("held_out", HELD_OUT))
    }
    changes: dict[str, Any] = {"train": str(places["train"]), "subset": None}
    if recipe.data.evaluation is not None:
        changes["evaluation"] = str(places["held_out"])
    length = length if task.reads_media else min(SEQUENCE_LENGTH, length)
    return recipe.data.model_copy(update=changes), usual, length


def _written(recipe: Recipe, task: Any, folder: Path, count: int) -> Path:
    seed = recipe.seed + count
    if task.name in MEDIA:
        write, file = MEDIA[task.name]
        write(folder, count, seed)
        return folder / file
    folder.mkdir(parents=True)
    write_rows(
        folder / "rows.jsonl",
        task.name,
        split=recipe.data.overlong == "split",
        count=count,
        longest=LONGEST,
        size=VOCABULARY,
        seed=seed,
        kind=getattr(task, "problem_type", "") or getattr(task, "scheme", ""),
    )
    return folder / "rows.jsonl"
