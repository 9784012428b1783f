"""Examples of a source's rows, as a task makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data.encoding import Encoder
from toolkit.data.example import Example, Row
from toolkit.data.reading.described import as_described
from toolkit.data.reading.row_names import RowName
from toolkit.tasks.base import Task


def encoder_of(
    task: Task,
    rows: Any,
    capacity: int,
    overlong: str,
    *,
    name: str = "data.train",
    row_name: RowName,
    tells_forms: bool = True,
    folder: Path | None = None,
    unreadable: str = "error",
    workers: int = 0,
) -> Encoder:
    """What encodes `rows`, of a source that describes them; `tells_forms`: it also counts which formats they have.

    `folder` is where paths in the rows begin; the others as of the Encoder.
    """

    def encode(row: Row) -> list[Example]:
        row = task.located(row, folder)
        found = task.encode(row)
        for example in found:
            task.examine(example)
        return found

    def source(row: Row) -> Example:
        return task.source(task.located(row, folder))

    return Encoder(
        as_described(encode if task.sourced else task.encode, rows),
        capacity,
        overlong,
        name,
        columns=task.columns,
        recognised=task.recognised if tells_forms else None,
        row_name=row_name,
        rows=rows,
        kind=task,
        unreadable=unreadable,
        source=as_described(source, rows) if task.sourced else None,
        workers=workers,
    )
