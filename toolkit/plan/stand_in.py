"""A run's largest micro-batch where neither its data nor its tokenizer is at hand: examples without meaning, full length."""

from __future__ import annotations

from typing import Any

from toolkit.data.example import IGNORED, Example
from toolkit.errors import ToolkitError
from toolkit.plan.trace import Untraceable
from toolkit.recipe import Recipe
from toolkit.tasks import task_class
from toolkit.tasks.base import Batch, Task
from toolkit.tasks.preferences.answers import REFERENCE

PIECES = 4
"""Documents in a packed sequence of a stand-in."""


class StandInTokenizer:
    """As much of a tokenizer as batches need."""

    pad_token_id = 0
    bos_token_id = eos_token_id = cls_token_id = sep_token_id = mask_token_id = unk_token_id = 1
    pad_token = bos_token = eos_token = mask_token = "<none>"
    chat_template = None
    is_fast = True
    name_or_path = "(none)"
    model_input_names = ("input_ids", "attention_mask")

    def __len__(self) -> int:
        return 2


def task_without_data(recipe: Recipe) -> Task:
    """The recipe's task, that takes for granted what its rows would say. Raises Untraceable where it cannot."""
    kind, options = task_class(recipe.task), recipe.task
    try:
        processor: Any = kind.load_processor(recipe.model)
    except (ToolkitError, OSError, ValueError):
        processor = StandInTokenizer()
        if getattr(options, "sample_prompt", None) is not None:
            options = options.model_copy(update={"sample_prompt": None})  # there is nothing to read it with
    try:
        task = kind(options, processor)
        task.assume()
    except ToolkitError as error:
        raise Untraceable(f"task.name={recipe.task.name!r} needs its data: {error.what}") from error
    except (AttributeError, TypeError) as error:  # a task that reads more than token ids
        raise Untraceable(f"task.name={recipe.task.name!r} needs the processor of its checkpoint") from error
    return task


def stand_in_batch(
    task: Task, config: Any, micro_size: int, length: int, *, packing: bool, keeps_base: bool, target_share: float = 1.0
) -> Batch:
    """A micro-batch of `micro_size` sequences of `length` tokens; packed, each of PIECES documents.

    Where tokens have targets, those at the end of each text do, `target_share` of all. Where the model `keeps_base`, that
    is what gives the reference of preference tasks, and examples have none.

    Raises Untraceable where only the data can tell what a batch is like.
    """
    several = packing and task.can_pack and length >= 2 * PIECES
    sizes = [length // PIECES] * (PIECES - 1) if several else []
    sizes.append(length - sum(sizes))
    try:
        pieces = [_with_targets(task.stand_in(size, config), target_share) for size in sizes]
        if keeps_base:
            pieces = [{name: value for name, value in piece.items() if name != REFERENCE} for piece in pieces]
        return task.collate([pieces for _ in range(micro_size)])
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
        raise Untraceable(f"task.name={task.options.name!r} needs its data to know what a batch is like") from error


def _with_targets(example: Example, share: float) -> Example:
    tokens, labels = example.get("input_ids"), example.get("labels")
    if share == 1.0 or tokens is None or labels is None or len(tokens) != len(labels):
        return example
    labels = labels.copy()
    labels[: len(labels) - max(1, round(share * len(labels)))] = IGNORED
    return {**example, "labels": labels}
