"""What a row says, and its images: in columns of its own, or in the parts of its messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.data.example import Row
from toolkit.data.forms.images import IMAGE, Illustrated, Placed, encoded
from toolkit.data.forms.messages import Conversation, EmptyAnswer, TrainOn, check_messages, not_text, num_answered
from toolkit.data.media.stored import Stored, located, stored
from toolkit.data.reading.column_names import ColumnMissing
from toolkit.errors import DataError, first_few
from toolkit.recipe.tasks.image_text import ImageTextToText

CAPTIONS = ("caption",)
"""Columns that hold a caption where task.text_field names none that is there."""


class LocatedRow(dict[str, Any]):
    """A row that knows the folder of its file: paths may stand anywhere in its messages."""

    folder: Path | None = None

    @classmethod
    def of(cls, row: Row, folder: Path | None) -> LocatedRow:
        """`row`, of a file in `folder`."""
        found = cls(row)
        found.folder = folder
        return found


def image_columns(row: Row, options: ImageTextToText) -> list[str]:
    """The columns of `row` that hold images: one of the two. Raises DataError where both do."""
    names = (options.images_field, options.image_field)
    filled = [name for name in dict.fromkeys(names) if row.get(name) is not None and _has_any(row[name])]
    if len(filled) == 2 and _same(row[filled[0]], row[filled[1]]):
        return filled[:1]
    if len(filled) == 2:
        raise DataError(
            f"{filled[0]} and {filled[1]} both hold images",
            expected="one of them",
            do=f"remove one, or name another column: --task.image_field none_of_them leaves {filled[1]} out",
        )
    return filled


def _has_any(value: Any) -> bool:
    return not (isinstance(value, list | tuple | str) and not len(value))


def _same(images: Any, image: Any) -> bool:
    """Whether a list holds just the one image beside it."""
    return isinstance(images, list | tuple) and len(images) == 1 and bool(images[0] == image)


def images_of(row: Row, options: ImageTextToText) -> list[Placed]:
    """The images in the columns of `row`, in their order."""
    found = []
    for column in image_columns(row, options):
        values = row[column] if isinstance(row[column], list | tuple) else [row[column]]
        several = isinstance(row[column], list | tuple)
        found += [Placed(f"{column}[{index}]" if several else column, value) for index, value in enumerate(values)]
    return found


def caption_column(row: Row, options: ImageTextToText) -> str:
    """The column of `row` that may hold a caption."""
    names: Collection[str] = (options.text_field, *CAPTIONS)
    return next((name for name in names if row.get(name) is not None), options.text_field)


def captioned(row: Row, images: Sequence[Placed], options: ImageTextToText) -> Illustrated:
    """`images` with the caption of `row`, which answers task.instruction. Raises DataError for a row that lacks one of them."""
    column = caption_column(row, options)
    if not images:
        raise ColumnMissing(
            f"{column} holds a caption, and the row has no image: task.images_field={options.images_field!r} and "
            f"task.image_field={options.image_field!r} hold none; the columns are {first_few(sorted(row))}",
            expected="an image beside each caption, or messages, which may do without",
            do="set task.image_field to the column of the image, or remove the row",
        )
    if not isinstance(row[column], str):
        raise not_text(column, row[column])
    if not row[column].strip():
        raise EmptyAnswer(f"{column} is empty", expected="a caption in every row", do="remove the row, or fill it in")
    asked = {"role": "user", "content": IMAGE * len(images) + options.instruction}
    answered = {"role": "assistant", "content": row[column]}
    return Illustrated(Conversation(column, [asked, answered], ["task.instruction", column]), list(images))


def up_to_the_last_answer(found: Illustrated, train_on: TrainOn) -> Illustrated:
    """`found` without the messages, and their images, after the last answer. Raises DataError for an image in an answer."""
    said = found.conversation
    turns, _ = check_messages(said, train_on=train_on)
    kept = num_answered(turns, said.num_context) if train_on == "assistant" else len(turns)
    for turn, label in zip(turns[:kept], said.labels[:kept], strict=True):
        if turn["role"] == "assistant" and IMAGE in turn["content"]:
            raise DataError(
                f"{label} is a message of the assistant with an image in it",
                expected="images in the messages of others: these models write text alone",
                do="move the image to a message of the user, or remove the row",
            )
    count = sum(turn["content"].count(IMAGE) for turn in turns[:kept])
    said = replace(said, messages=said.messages[:kept], labels=said.labels[:kept])
    return Illustrated(said, found.images[:count])


def read(image: Placed, folder: Path | None) -> Stored:
    """The bytes of `image`; a path that is not absolute is one in `folder`."""
    value = encoded(image.value, image.where)
    return stored(located(value, folder), image.where)
