"""Conversations, prompt/completion pairs and plain text -> token ids and labels.

Labels come from character spans of the rendered text, mapped to tokens by the tokenizer's offsets: never from
comparing token ids, so a pad token that is also the end token loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jinja2
import numpy as np

from toolkit.data.example import IGNORED, Example
from toolkit.errors import DataError

TrainOn: TypeAlias = Literal["assistant", "all"]
Span: TypeAlias = tuple[int, int]

ROLES = ("system", "developer", "user", "assistant", "tool")
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_messages(tokenizer: Any, messages: object, *, train_on: TrainOn, where: str) -> Example:
    """One conversation through the tokenizer's own chat template.

    With train_on="assistant" the labels are the assistant's turns, each with the token that ends the turn but without
    the white space after it; a template with {% generation %} blocks decides itself. `where` names the column in
    messages. Raises DataError for messages of the wrong shape, and for a missing or unsuitable template.
    """
    turns = _check_messages(messages, where)
    template = _template(tokenizer, where)
    text = _render(tokenizer, turns, where)
    if train_on == "all":
        return _tokens(tokenizer, text, [(0, len(text))], add_special_tokens=False)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise DataError(
            f"{where} has no message of the role 'assistant', so nothing would be trained",
            expected="at least one answer in each conversation",
            do="remove the row, or set task.train_on='all'",
        )
    if _GENERATION_BLOCK.search(template):
        return _template_masked(tokenizer, turns)
    return _tokens(tokenizer, text, _assistant_spans(tokenizer, turns, text, where), add_special_tokens=False)


def encode_prompt_completion(
    tokenizer: Any, prompt: object, completion: object, *, train_on: TrainOn, where: str
) -> Example:
    """A prompt and what should follow: as user and assistant where there is a chat template, else joined and ended.

    `where` names the two columns in messages. Raises DataError for values that are not text and an empty completion.
    """
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str):
            raise _not_text(f"the {name} of {where}", value)
    assert isinstance(prompt, str) and isinstance(completion, str)
    if not completion.strip():
        raise DataError(
            f"the completion of {where} is empty",
            expected="text to learn after each prompt",
            do="remove the row, or fill in its completion",
        )
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return encode_messages(tokenizer, turns, train_on=train_on, where=where)
    text = prompt + completion
    start = 0 if train_on == "all" else len(prompt)
    return _ended(tokenizer, _tokens(tokenizer, text, [(start, len(text))], add_special_tokens=True), where)


def encode_text(tokenizer: Any, text: object, *, where: str) -> Example:
    """Plain text, all of it trained, ended by the end token; blank text gives an example without tokens."""
    if not isinstance(text, str):
        raise _not_text(where, text)
    if not text.strip():
        return {"input_ids": np.zeros(0, dtype=np.int32), "labels": np.zeros(0, dtype=np.int32)}
    return _ended(tokenizer, _tokens(tokenizer, text, [(0, len(text))], add_special_tokens=True), where)


def _check_messages(messages: object, where: str) -> list[dict[str, Any]]:
    """The messages without their empty (None) fields, which data sets add to make rows alike."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        given = repr(messages)[:60] if not isinstance(messages, Mapping) else f"an object with {sorted(messages)}"
        raise DataError(
            f"{where} is {given}",
            expected='a list of messages, [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
            do="write conversations in that form, or choose another column with data.messages_field",
        )
    return [_check_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]


def _check_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(
            f"{where} is {type(message).__name__} {str(message)[:40]!r}",
            expected='an object {"role": ..., "content": ...}',
            do="write each message as such an object",
        )
    turn = {key: value for key, value in message.items() if value is not None}
    calls_tools = turn.get("role") == "assistant" and bool(turn.get("tool_calls"))
    missing = [key for key in ("role", "content") if key not in turn and not (key == "content" and calls_tools)]
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
        raise _not_text(f"{where}.content", content)
    if turn["role"] == "assistant" and not content.strip() and not calls_tools:
        raise DataError(
            f"{where}.content={content!r}: an empty answer would be trained",
            expected="text in every message of the assistant",
            do="remove the row or the message",
        )
    return turn


def _not_text(where: str, value: object) -> DataError:
    return DataError(
        f"{where} is {type(value).__name__} {str(value)[:40]!r}",
        expected="text",
        do="write the value as a string, or remove the row",
    )


def _template(tokenizer: Any, where: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} holds conversations, but the tokenizer has no chat template",
            expected="a tokenizer with a chat template, as instruction-tuned models have",
            do="set model.tokenizer to one that has it, or use prompt/completion or text columns",
        )
    return str(tokenizer.get_chat_template())


def _render(tokenizer: Any, turns: list[dict[str, Any]], where: str, *, prompt: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the tokenizer's chat template refuses {where} with the roles {roles}: {str(error)[:200]}",
            expected="messages in the order that the template knows",
            do="reorder or merge the messages (some templates know no system role), or choose another tokenizer",
        ) from None


def _assistant_spans(tokenizer: Any, turns: list[dict[str, Any]], text: str, where: str) -> list[Span]:
    """Character spans in `text` of what the model has to produce: from each generation prompt to the end of turn."""
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        content = turn.get("content", "").strip()
        # No template renders an empty conversation: an opening answer starts where its content does.
        before = _render(tokenizer, turns[:index], where, prompt=True) if index else text[: max(text.find(content), 0)]
        after = _render(tokenizer, turns[: index + 1], where) if index + 1 < len(turns) else text
        spans.append(_turn_span(text, before, after, content, f"{where}[{index}]"))
    return spans


def _turn_span(text: str, before: str, after: str, content: str, where: str) -> Span:
    """Where a turn stands in `text`, given the renderings that end right before and right after it."""
    start = len(before)
    if not text.startswith(before):
        raise DataError(
            f"the tokenizer's chat template renders what is before {where} differently once the answer follows",
            expected="a template that only appends, or one with {% generation %} blocks",
            do="choose a tokenizer with such a template, keep one answer per conversation, or set task.train_on='all'",
        )
    end = len(after)
    if not text.startswith(after):
        # The template rewrites earlier turns (reasoning is dropped from all but the last): find the content instead.
        found = text.find(content, start)
        tail = after[after.rfind(content) + len(content) :]
        if not content or found < 0 or not text.startswith(tail, found + len(content)):
            raise DataError(
                f"the tokenizer's chat template renders {where} differently once more messages follow",
                expected="a template that keeps an answer's text, or one with {% generation %} blocks",
                do="choose a tokenizer with such a template, or set task.train_on='all'",
            )
        end = found + len(content) + len(tail)
    trimmed = text[start:end].rstrip()
    # A template without an end token ends turns by white space only: then that has to be learned.
    return (start, end) if content and trimmed.endswith(content) else (start, start + len(trimmed))


def _template_masked(tokenizer: Any, turns: list[dict[str, Any]]) -> Example:
    encoded = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
    )
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    return _labelled(ids, np.array(encoded["assistant_masks"], dtype=bool))


def _tokens(tokenizer: Any, text: str, spans: list[Span], *, add_special_tokens: bool) -> Example:
    """Tokens of `text`; those that share a character with one of `spans` carry loss."""
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer {type(tokenizer).__name__} reports no character offsets",
            expected="a fast tokenizer (tokenizer.json)",
            do="set model.tokenizer to a directory with a tokenizer.json",
        )
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False, truncation=False
    )
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    trained = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        trained |= (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 0] < offsets[:, 1])
    return _labelled(ids, trained)


def _labelled(ids: np.ndarray, trained: np.ndarray) -> Example:
    labels = np.where(trained, ids, IGNORED).astype(np.int32)
    labels[:1] = IGNORED  # nothing in the example predicts its first token
    return {"input_ids": ids, "labels": labels}


def _ended(tokenizer: Any, example: Example, where: str) -> Example:
    """`example` with the end token last, trained."""
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"the tokenizer has no end token to put after {where}",
            expected="a tokenizer with eos_token",
            do="set eos_token in the tokenizer's tokenizer_config.json, or set model.tokenizer to another one",
        )
    ids, labels = example["input_ids"], example["labels"]
    if len(ids) and ids[-1] == end:  # the tokenizer added it, outside of the text and hence of the spans
        ids, labels = ids[:-1], labels[:-1]
    last = np.array([end], dtype=np.int32)
    return {"input_ids": np.concatenate([ids, last]), "labels": np.concatenate([labels, last])}
