"""What a row says in messages: their roles, their texts, and which answers are to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from toolkit.data.forms.tool_calls import Schema, as_list, calls_of, kind_of
from toolkit.errors import DataError, nearest

Turn: TypeAlias = dict[str, Any]
"""A message as a template gets it: "role" and "content" (text, "" beside tool calls) always, no key with a null."""
TrainOn: TypeAlias = Literal["assistant", "all"]

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
} | {
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
"""What ShareGPT's files and their kin call the roles. "function" is OpenAI's older name, taken everywhere."""
CALLING = ("function_call", "tool_call")
"""What they call a message of the assistant that is nothing but calls of tools."""
ANSWERING = {"assistant", *CALLING, *(other for other, role in OTHER_ROLES.items() if role == "assistant")}
"""All names of the role whose messages are learned."""

FLAGS = ("weight", "train", "training")
"""Keys by which an answer says whether it is learned, 1 or true, or only context, 0 or false: OpenAI's and axolotl's."""
LEARNED_IF_TRUE = ("compute_loss", "is_trained", "learn", "loss", "loss_scale", "loss_weight", "trainable")
"""Further keys by which tools say that a message is learned. They are not read: one that disagrees is refused."""
MASKS = ("ignore", "loss_mask", "mask", "masked", "no_loss", "train_detail", "training_detail")
"""Keys of other tools that say no more than that a message, or a part of it, is special. Refused."""
TEXTS = ("text", "input_text", "output_text")
"""Types of parts that are text: the usual one, and OpenAI's newer two."""
THOUGHTS = ("thinking", "reasoning")
"""Types of parts with what an assistant thinks before it answers: Anthropic's and others'."""
LIKE_WEIGHT = 0.8
"""How like "weight" a key is, 1 for the same, that is taken for a slip of it: "wieght", "weights"."""


class EmptyAnswer(DataError):
    """A row whose answer, which would be learned, is null or holds no text."""


@dataclass(frozen=True)
class Conversation:
    """Messages as a row has them, before they are checked."""

    where: str
    """The column, or columns, in the words of an error."""
    messages: Sequence[object]
    labels: Sequence[str]
    """Where each message stands, in the words of an error."""
    tools: list[Schema] | None = None
    num_context: int = 0
    """So many messages at the beginning are a prompt: no answer in them is learned."""
    takes_other_roles: bool = False
    """Whether the names of roles in OTHER_ROLES are known in all messages, not only in those in ShareGPT's form."""


def check_messages(conversation: Conversation, *, train_on: TrainOn) -> tuple[list[Turn], list[bool]]:
    """The messages as a template gets them, and which of them are to be learned: those that `train_on` says, but no
    answer with "weight": 0 or "train": false.

    Empty (None) fields, which data sets add to make rows alike, are left out. Raises DataError for another shape, and
    for a key that says what is learned and would not be followed.
    """
    others = conversation.takes_other_roles
    turns = [_turn(said, label, others) for said, label in zip(conversation.messages, conversation.labels, strict=True)]
    learned = []
    for index, (turn, label) in enumerate(zip(turns, conversation.labels, strict=True)):
        learned.append(_is_learned(turn, label, train_on, is_context=index < conversation.num_context))
    return turns, learned


def num_answered(turns: Sequence[Turn], num_context: int = 0) -> int:
    """The number of messages up to the last answer: what comes after it has none and is not learned.

    All of them where no answer follows the first `num_context`.
    """
    answers = (index for index in range(len(turns), num_context, -1) if turns[index - 1]["role"] == "assistant")
    return next(answers, len(turns))


def ends_unanswered(conversation: Conversation, *, train_on: TrainOn) -> bool:
    """Whether messages after the last answer are left out when the conversation is encoded."""
    if train_on != "assistant":
        return False
    turns, _ = check_messages(conversation, train_on=train_on)
    return num_answered(turns, conversation.num_context) < len(turns)


def not_text(where: str, value: object) -> DataError:
    """The error for a value that has to be text."""
    if value is None:
        return DataError(f"{where} is null", expected="text", do="fill it in, or remove the row")
    return DataError(
        f"{where} is {type(value).__name__} {str(value)[:40]!r}",
        expected="text",
        do="write the value as a string, or remove the row",
    )


def _turn(message: object, where: str, takes_other_roles: bool) -> Turn:
    if not isinstance(message, Mapping):
        raise DataError(
            f"{where} is {kind_of(message)}: {str(message)[:40]!r}",
            expected='an object {"role": ..., "content": ...}',
            do="write each message as such an object",
        )
    is_sharegpt = message.get("role") is None and {"from", "value"} <= message.keys()
    names = ("from", "value") if is_sharegpt else ("role", "content")
    turn = {key: value for key, value in message.items() if value is not None and key not in names}
    role, text = _role(message, names, where, is_sharegpt or takes_other_roles), message.get(names[1])
    if role in CALLING:
        turn["tool_calls"], calls_key, role, text = as_list(text), names[1], "assistant", ""
    else:
        calls_key = "tool_calls"
    calls = calls_of(turn, where, calls_key) if turn.keys() & {"tool_calls", "function_call"} else []
    for key in ("tool_calls", "function_call"):
        turn.pop(key, None)
    if calls and role != "assistant":
        raise DataError(
            f"{where}.tool_calls of a message with the role {role!r}",
            expected="tool calls in messages of the assistant",
            do="remove them, or correct the role",
        )
    if text is None and not calls:
        raise _no_text(message, names[1], where)
    if isinstance(text, list | tuple) and role == "assistant":
        text, turn = _without_thoughts(text, turn, f"{where}.{names[1]}")
    content = "" if text is None else _text(text, f"{where}.{names[1]}")
    if role == "assistant" and not content.strip() and not calls:
        raise EmptyAnswer(
            f"{where}.{names[1]}={content!r}: an empty answer would be trained",
            expected="text in every message of the assistant",
            do="remove the row or the message",
        )
    return {"role": role, "content": content, **turn, **({"tool_calls": calls} if calls else {})}


def _role(message: Mapping[str, Any], names: tuple[str, str], where: str, takes_others: bool) -> str:
    role = message.get(names[0])
    if role is None:
        missing = [key for key in names if key not in message]
        if not missing:
            raise not_text(f"{where}.{names[0]}", None)
        raise DataError(
            f"{where} has no {' and no '.join(map(repr, missing))}; its keys are {sorted(map(str, message))}",
            expected='"role" and "content" (or ShareGPT\'s "from" and "value") in every message',
            do=_renaming(missing, message),
        )
    if role in ROLES or (takes_others and role in CALLING):
        return str(role)
    known = isinstance(role, str) and role in OTHER_ROLES
    if known and (takes_others or role == "function"):
        return OTHER_ROLES[role]
    raise DataError(
        f"{where}.{names[0]}={role!r}",
        expected=f"one of {', '.join((*ROLES, *OTHER_ROLES, *CALLING) if takes_others else ROLES)}",
        do=f"rename the role to {OTHER_ROLES[role]}, or the column to conversations, where ShareGPT's names are read "
        f"({', '.join(OTHER_ROLES)})"
        if known
        else "rename the role",
    )


def _no_text(message: Mapping[str, Any], key: str, where: str) -> DataError:
    if key in message:
        return DataError(
            f"{where}.{key} is null",
            expected="text in every message that calls no tool",
            do=_calling(message) + "fill it in, or remove the message or the row",
        )
    return DataError(
        f"{where} has no {key!r}; its keys are {sorted(map(str, message))}",
        expected='"role" and "content" in every message',
        do=_renaming([key], message),
    )


def _calling(message: Mapping[str, Any]) -> str:
    """What to do about a key of `message` that is a slip of "tool_calls"."""
    slip = nearest("tool_calls", [str(key) for key in message if key not in ("tool_call_id", "tool_calls")])
    return f"rename {slip[0]!r} to 'tool_calls' if it calls a tool, " if slip else ""


def _renaming(missing: Sequence[str], message: Mapping[str, Any]) -> str:
    """What to do about the keys that `message` lacks: slips of them are named."""
    slips = [f"{near[0]!r} to {key!r}" for key in missing if (near := nearest(key, map(str, message)))]
    return f"rename {' and '.join(slips) or 'the keys'}, or fill in what is missing"


def _text(content: object, where: str) -> str:
    """The text of a message; a list of parts, as multimodal data sets have it, line by line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise not_text(where, content)
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in TEXTS:
            texts.append(part["text"])
        else:
            said = f"of the type {part['type']!r}" if isinstance(part, Mapping) and part.get("type") else kind_of(part)
            raise DataError(
                f"{where}[{index}] is {said}",
                expected='parts of text, {"type": "text", "text": "..."}: these models read text only',
                do="remove the row, or put words in the place of the part",
            )
    return "\n".join(texts)


def _without_thoughts(parts: Sequence[object], turn: Turn, where: str) -> tuple[list[object], Turn]:
    """The other parts, and `turn` with the text of its thinking blocks as "reasoning_content", which templates read."""
    thoughts, others = [], []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in THOUGHTS:
            others.append(part)
            continue
        assert isinstance(part, Mapping)
        said = next((part[key] for key in (kind, "text") if isinstance(part.get(key), str)), None)
        if said is None:
            raise not_text(f"{where}[{index}].{kind}", part.get(kind))
        thoughts.append(said)
    if not thoughts:
        return others, turn
    if known := [key for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)]:
        raise DataError(
            f"{where} has thinking blocks, and the message {known[0]!r} beside them",
            expected="what the assistant thinks in one place",
            do="remove one of them",
        )
    return others, {**turn, "reasoning_content": "\n".join(thoughts)}


def _is_learned(turn: Turn, where: str, train_on: TrainOn, *, is_context: bool) -> bool:
    """Whether `turn` is to be learned; takes out the keys that say so, which are not the template's."""
    is_answer = turn["role"] == "assistant"
    learned = (is_answer and not is_context) or train_on == "all"
    said_there = [(key, turn.pop(key)) for key in FLAGS if key in turn]
    for key, flag in said_there:
        if flag not in (0, 1) or (bool(flag) != learned and (is_context or not is_answer)):
            raise DataError(
                f"{where}.{key}={flag!r} of a message with the role {turn['role']!r}",
                expected="1 or true for an answer that is learned, 0 or false for one that is only context",
                do="write one of them, in answers; what else is learned is decided by task.train_on for all rows",
            )
    if len({bool(flag) for _, flag in said_there}) > 1:
        raise DataError(
            f"{where} says {' and '.join(f'{key}={flag!r}' for key, flag in said_there)}",
            expected="one of them",
            do="remove what is not meant",
        )
    for _, flag in said_there:
        learned = bool(flag)
    for key in [key for key in turn if key in LEARNED_IF_TRUE or key in MASKS or _is_like_weight(key, turn[key])]:
        said = turn.pop(key)
        if key in MASKS or said not in (0, 1) or bool(said) != learned:
            raise DataError(
                f"{where}.{key}={said!r}: this key is not read, and the message would{'' if learned else ' not'} be learned",
                expected='"weight": 0 for an answer that is only context, "weight": 1 or nothing for one that is learned',
                do=f"write it in that form, and remove {key!r}",
            )
    return learned


def _is_like_weight(key: object, said: object) -> bool:
    """Whether `key` is a slip of "weight" by which somebody says that a message is learned, or is not."""
    return isinstance(key, str) and said in (0, 1) and bool(nearest(key.casefold(), ["weight"], LIKE_WEIGHT))
