"""What an answer replies to, where it stands in columns of its own: a prompt, or the question of a known format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.example import Row
from toolkit.data.forms.conversations import in_column, messages_in
from toolkit.data.forms.formats import find_question, is_filled, system_of
from toolkit.data.forms.messages import ANSWERING, Conversation, not_text
from toolkit.errors import DataError


@dataclass(frozen=True)
class Asked:
    """What is asked, where it does not stand in the answers themselves."""

    talk: Conversation
    text: str | None
    """The same as one text, where it is one."""
    columns: tuple[str, ...]


def asked_of(row: Row, prompt: str, values: Mapping[str, Any]) -> Asked | None:
    """The prompt of `row`: in the column of that name, in messages, or the question of a known format.

    None where it has none, and where the answers, `values` by column, are whole conversations and no column has that name.
    """
    if is_filled(row.get(prompt)):
        said = system_of(row) if prompt not in ("system", "system_prompt") else []
        columns = (prompt, *(column for column, _ in said))
        value = messages_in(row[prompt])
        if not isinstance(value, str | list | tuple):
            raise not_text(prompt, value)
        if isinstance(value, str):
            talk = _spoken(" and ".join(columns), [*said, (prompt, {"role": "user", "content": value})])
            return Asked(talk, None if said else value, columns)
        return Asked(behind(said, in_column(value, prompt, takes_other_roles=True)), None, columns)
    if not any(isinstance(value, str) or begins_with_answer(value) for value in values.values()):
        return None
    if is_filled(row.get("messages")):
        return Asked(behind(system_of(row), in_column(row["messages"], "messages")), None, ("messages",))
    form = find_question(row)
    if form is not None:
        talk = form.question(row)
        text = None
        if form.joined is not None and len(talk.messages) == 1:
            text = form.joined({**row, form.needs[-1]: "."})[0]
        read = (form.needs[0], *form.may)
        return Asked(talk, text, tuple(name for name in row if name in read and is_filled(row[name])))
    if prompt in row and all(isinstance(value, str) for value in values.values()):
        raise DataError(
            f"{prompt} is {'null' if row[prompt] is None else 'empty'}",
            expected="what the answers reply to",
            do="fill it in, or remove the row",
        )
    return None


def begins_with_answer(messages: Sequence[object]) -> bool:
    """Whether the first of `messages` is one of the assistant."""
    first = messages[0]
    return isinstance(first, Mapping) and (first.get("role") or first.get("from")) in ANSWERING


def _spoken(where: str, said: Sequence[tuple[str, dict[str, str]]]) -> Conversation:
    return Conversation(where, [message for _, message in said], [label for label, _ in said], takes_other_roles=True)


def behind(said: Sequence[tuple[str, dict[str, str]]], talk: Conversation) -> Conversation:
    """`talk` with messages of other columns before it."""
    messages, labels = [message for _, message in said], [label for label, _ in said]
    return replace(talk, messages=[*messages, *talk.messages], labels=[*labels, *talk.labels])


def after(asked: Asked, answer: Conversation) -> Conversation:
    """The prompt with the messages of an answer behind it."""
    talk = asked.talk
    return replace(
        talk,
        where=f"{talk.where} and {answer.where}",
        messages=[*talk.messages, *answer.messages],
        labels=[*talk.labels, *answer.labels],
        num_context=len(talk.messages),
    )
