"""A task's section as one reads it whose data has the task's usual columns."""

from __future__ import annotations

from typing import Any

from toolkit.recipe.tasks.base import Task


def on_usual_columns(task: Task) -> Any:
    """`task` with the defaults of its columns; those without which it is another task are there under their plain names."""
    kept = {
        name: getattr(task, name)
        for name in type(task).model_fields
        if not name.endswith(("_field", "_fields", "_language"))  # languages name columns, too
    }
    if getattr(task, "label_fields", ()):
        kept["problem_type"] = "multi_label_classification"
    kept |= {
        f"{name}_field": name for name in ("negative", "score") if getattr(task, f"{name}_field", None) is not None
    }
    return type(task)(**kept)
