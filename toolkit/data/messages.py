"""What a row says in messages: their roles, their texts, and which answers are to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from toolkit.errors import DataError

Turn: TypeAlias = dict[str, Any]
TrainOn: TypeAlias = Literal["assistant", "all"]

ROLES = ("system", "developer", "user", "assistant", "tool")

LEARNED_IF_TRUE = (
    "compute_loss",
    "is_trained",
    "learn",
    "loss",
    "loss_scale",
    "loss_weight",
    "train",
    "trainable",
    "training",
)
"""Keys by which other tools say that a message is learned. They are not read: one that disagrees is refused."""
MASKS = ("ignore", "loss_mask", "mask", "masked", "no_loss", "train_detail", "training_detail")
"""Keys of other tools that say no more than that a message, or a part of it, is special. Refused."""


def check_messages(messages: object, where: str, *, train_on: TrainOn) -> tuple[list[Turn], list[bool]]:
    """The messages as a template gets them, and which of them are to be learned: those that `train_on` says, but no
    answer with "weight": 0.

    Empty (None) fields, which data sets add to make rows alike, are left out. Raises DataError for another shape, and
    for a key that says what is learned and would not be followed; `where` names the column.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        given = repr(messages)[:60] if not isinstance(messages, Mapping) else f"an object with {sorted(messages)}"
        raise DataError(
            f"{where} is {given}",
            expected='a list of messages, [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
            do="write conversations in that form, or choose another column with data.messages_field",
        )
    turns = [_check_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]
    return turns, [_is_learned(turn, f"{where}[{index}]", train_on) for index, turn in enumerate(turns)]


def not_text(where: str, value: object) -> DataError:
    """The error for a value that has to be text."""
    return DataError(
        f"{where} is {type(value).__name__} {str(value)[:40]!r}",
        expected="text",
        do="write the value as a string, or remove the row",
    )


def _check_message(message: object, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise DataError(
            f"{where} is {type(message).__name__} {str(message)[:40]!r}",
            expected='an object {"role": ..., "content": ...}',
            do="write each message as such an object",
        )
    turn = {key: value for key, value in message.items() if value is not None}
    calls_tools = turn.get("role") == "assistant" and bool(turn.get("tool_calls"))
    missing = [key for key in ("role", "content") if key not in turn and not (key == "content" and calls_tools)]
    empty = [key for key in missing if key in message]
    if empty:
        raise DataError(
            f"{where}.{empty[0]} is null",
            expected="text in every message",
            do="fill it in, or remove the message or the row",
        )
    if missing:
        raise DataError(
            f"{where} has no {' and no '.join(repr(key) for key in missing)}; its keys are {sorted(message)}",
            expected='"role" and "content" in every message',
            do="rename the keys (for instance from/value to role/content), or fill in what is missing",
        )
    if turn["role"] not in ROLES:
        raise DataError(
            f"{where}.role={turn['role']!r}",
            expected=f"one of {', '.join(ROLES)}",
            do="rename the role (for instance human to user, gpt to assistant)",
        )
    content = turn.get("content", "")
    if not isinstance(content, str):
        raise not_text(f"{where}.content", content)
    if turn["role"] == "assistant" and not content.strip() and not calls_tools:
        raise DataError(
            f"{where}.content={content!r}: an empty answer would be trained",
            expected="text in every message of the assistant",
            do="remove the row or the message",
        )
    return turn


def _is_learned(turn: Turn, where: str, train_on: TrainOn) -> bool:
    """Whether `turn` is to be learned; takes out the keys that say so, which are not the template's."""
    is_answer = turn["role"] == "assistant"
    learned = is_answer or train_on == "all"
    weight = turn.pop("weight", None)
    if weight is not None:
        if weight not in (0, 1) or (bool(weight) != learned and not is_answer):
            raise DataError(
                f"{where}.weight={weight!r} of a message with the role {turn['role']!r}",
                expected="1 for an answer that is learned, 0 for one that is only context",
                do="write 0 or 1, in answers; what else is learned is decided by task.train_on for all rows",
            )
        learned = bool(weight)
    for key in [key for key in turn if key in LEARNED_IF_TRUE or key in MASKS]:
        said = turn.pop(key)
        if key in MASKS or said not in (0, 1) or bool(said) != learned:
            raise DataError(
                f"{where}.{key}={said!r}: this key is not read, and the message would{'' if learned else ' not'} be learned",
                expected='"weight": 0 for an answer that is only context, "weight": 1 or nothing for one that is learned',
                do=f"write it in that form, and remove {key!r}",
            )
    return learned
