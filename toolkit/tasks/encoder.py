"""Examples of a source's rows, as a task makes them."""

from __future__ import annotations

from typing import Any

from toolkit.data.encoding import Encoder
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
) -> Encoder:
    """What encodes `rows`, of a source that describes them; `tells_forms`: it also counts which formats they have."""
    return Encoder(
        as_described(task.encode, rows),
        capacity,
        overlong,
        name,
        columns=task.columns,
        recognised=task.recognised if tells_forms else None,
        row_name=row_name,
        rows=rows,
        kind=task,
    )
