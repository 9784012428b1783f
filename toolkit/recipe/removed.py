"""Fields that recipes once had: whoever still writes one reads what has taken its place."""

from __future__ import annotations

from typing import Any

from toolkit.errors import RecipeError

REMOVED = {
    "evaluation.max_batches": (
        "evaluation.max_sequences, another unit: sequences over all ranks, not micro-batches of each",
        "set evaluation.max_sequences instead; max_batches x batch.micro_size x data-parallel ranks are as many",
    ),
    "evaluation.higher_is_better": (
        "nothing: the task knows which way each of its metrics improves (loss falls, accuracy rises)",
        "remove evaluation.higher_is_better",
    ),
    **{
        f"data.{name}": (
            f"task.{name}: the columns that a task reads are fields of that task",
            f"write task.{name} (in a recipe: task={section}({name}=...), or the section of the task that reads it)",
        )
        for name, section in (
            *((name, "CausalLM") for name in ("messages_field", "prompt_field", "completion_field", "text_field")),
            ("label_field", "SequenceClassification"),
        )
    },
}
"""Dotted name -> what there is now, and what to do."""


def removed_field(name: str, value: Any) -> RecipeError | None:
    """The message for `value` given to the field `name`, where that is one of REMOVED."""
    if name not in REMOVED:
        return None
    expected, do = REMOVED[name]
    return RecipeError(f"{name}={value!r}: there is no such field any more", expected=expected, do=do)
