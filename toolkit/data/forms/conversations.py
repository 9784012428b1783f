"""Columns of a row as a conversation: a list of messages, or a prompt with its completion."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.example import Row
from toolkit.data.forms.messages import Conversation, EmptyAnswer, not_text
from toolkit.data.forms.tool_calls import kind_of, parsed
from toolkit.errors import DataError

_FORM = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def in_column(value: object, column: str, *, takes_other_roles: bool = False) -> Conversation:
    """The messages in one column: a list, or JSON text of one. Raises DataError for anything else.

    Messages may be one object of lists, {"role": [...], "content": [...]}, and ShareGPT's, with "from" and "value"; `takes_other_roles` takes its names of roles in all of them.
    """
    messages = value
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        messages = parsed(value, column, _FORM)
    if isinstance(messages, Mapping) and (transposed := _transposed(messages)):
        messages = transposed
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        given = (
            f"{kind_of(messages)} with the keys {sorted(map(str, messages))}" if isinstance(messages, Mapping) else ""
        )
        given = given or ("an empty list" if messages == [] else f"{kind_of(messages)}: {str(messages)[:60]!r}")
        raise DataError(
            f"{column} is {given}",
            expected=f"a list of messages, {_FORM}",
            do="write conversations in that form, or choose another column with task.messages_field",
        )
    labels = [f"{column}[{index}]" for index in range(len(messages))]
    return Conversation(column, messages, labels, takes_other_roles=takes_other_roles)


def _transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of {"role": [...], "content": [...]}, as older releases of datasets keep a list of objects."""
    keys = [pair for pair in (("role", "content"), ("from", "value")) if {*pair} <= columns.keys()]
    lengths = {len(value) if isinstance(value, list | tuple) else None for value in columns.values()}
    if len(keys) != 1 or len(lengths) != 1 or None in lengths:
        return None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def completion_of(row: Row, prompt: str, completion: str) -> Conversation:
    """A prompt with what should follow, in two columns: two texts, or two lists of messages as TRL has them.

    Raises DataError for anything else, and for an empty completion.
    """
    both = {column: messages_in(row[column]) for column in (prompt, completion)}
    lists = [column for column, value in both.items() if isinstance(value, list | tuple)]
    if not lists:
        asked, answered = texts_of(row, prompt, completion)
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return Conversation(f"{prompt} and {completion}", messages, [prompt, completion])
    if len(lists) == 1:
        [other] = {prompt, completion} - {*lists}
        raise DataError(
            f"{lists[0]} is a list, but {other} is {kind_of(row[other])}: {str(row[other])[:40]!r}",
            expected="two texts, or two lists of messages",
            do="write both in one form, or move the whole conversation to one column, task.messages_field",
        )
    before, after = (in_column(both[column], column) for column in (prompt, completion))
    return Conversation(
        f"{prompt} and {completion}",
        [*before.messages, *after.messages],
        [*before.labels, *after.labels],
        num_context=len(before.messages),
    )


def texts_of(row: Row, prompt: str, completion: str) -> tuple[str, str]:
    """Prompt and completion, two texts. Raises DataError, with the column, for other values and an empty completion."""
    for column in (prompt, completion):
        if not isinstance(row[column], str):
            raise not_text(column, row[column])
    if not row[completion].strip():
        raise EmptyAnswer(
            f"{completion} is empty",
            expected="text to learn after each prompt",
            do="remove the row, or fill it in",
        )
    return row[prompt], row[completion]


def messages_in(value: object) -> object:
    """`value`, or the list of messages that it is the JSON text of (a text may look like a list and be none)."""
    if isinstance(value, str) and value.lstrip().startswith("[") and '"role"' in value:
        with contextlib.suppress(ValueError):
            found = json.loads(value)
            if found and all(isinstance(message, dict) and "role" in message for message in found):
                return found
    return value
