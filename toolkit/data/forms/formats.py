"""The field's own shapes of rows, recognised by their columns and read as conversations.

A shape is one entry of FORMATS. It counts only for rows without any of the columns that the recipe names, so that what
the recipe says always wins. To add one, write its entry; `read` turns a row into a conversation, and `joined` into a
prompt with its completion where words for tokenizers without a chat template are part of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.example import Row
from toolkit.data.forms.conversations import in_column
from toolkit.data.forms.messages import Conversation, EmptyAnswer, not_text
from toolkit.data.forms.tool_calls import parsed
from toolkit.errors import DataError

SYSTEM = ("system", "system_prompt")
"""Columns that may hold a system message beside the others."""


@dataclass(frozen=True)
class Format:
    """A shape of rows."""

    name: str
    needs: tuple[str, ...]
    """Columns by which it is recognised."""
    may: tuple[str, ...]
    """Further columns that are read where they hold something."""
    read: Callable[[Row], Conversation]
    """Raises DataError, with the column, for a row of another kind."""
    question: Callable[[Row], Conversation]
    """What an answer follows, for rows whose answers stand in columns of another kind."""
    joined: Callable[[Row], tuple[str, str]] | None = None
    """Prompt and completion as the format itself writes them for models without a chat template."""

    def columns(self, row: Row) -> list[str]:
        """The columns of `row` that are read, in its order."""
        return [column for column, value in row.items() if column in (*self.needs, *self.may) if is_filled(value)]

    def describe(self, columns: Iterable[str]) -> str:
        """The format, and those `columns` of it."""
        return f"{self.name} ({', '.join(columns)})"


def find(row: Row) -> Format | None:
    """The format of `row`, None where it has none. Raises DataError for a row with the columns of several."""
    present = [form for form in FORMATS if set(form.needs) <= row.keys() and form.columns(row)]
    filled = [form for form in present if all(is_filled(row[column]) for column in form.needs)]
    found = filled or present
    if len(found) > 1:
        columns = sorted({column for form in found for column in form.needs})
        raise DataError(
            f"the columns {', '.join(columns)} hold several forms of training text: "
            f"{', '.join(form.describe(form.needs) for form in found)}",
            expected="one of them",
            do="say which columns are meant, with task.prompt_field and task.completion_field (or task.messages_field)",
        )
    return found[0] if found else None


def find_question(row: Row) -> Format | None:
    """The format whose question `row` has, whatever its answers are called; None where it has none."""
    return next((form for form in FORMATS if is_filled(row.get(form.needs[0]))), None)


def is_filled(value: Any) -> bool:
    """Whether a field says something: in CSV an empty one cannot be left out."""
    return value is not None and value != ""


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise not_text(column, value)
    return value


def _answer(row: Row, column: str) -> str:
    text = _text(row, column)
    if not text.strip():
        raise EmptyAnswer(
            f"{column} is empty", expected="text to learn in every row", do="remove the row, or fill it in"
        )
    return text


def system_of(row: Row) -> list[tuple[str, dict[str, str]]]:
    """The system message in a column of `row`, with the column; an empty list where it has none."""
    columns = [column for column in SYSTEM if is_filled(row.get(column))]
    return [(column, {"role": "system", "content": _text(row, column)}) for column in columns[:1]]


def _conversation(columns: str, said: list[tuple[str, dict[str, str]]]) -> Conversation:
    return Conversation(columns, [message for _, message in said], [label for label, _ in said])


def _pair(
    name: str,
    asked: str,
    answered: str,
    context: str | None = None,
    history: str | None = None,
    joined: Callable[[Row], tuple[str, str]] | None = None,
) -> Format:
    """A question in one column, perhaps with more to it in another and turns before it, and its answer."""
    columns = [asked, *([context] if context else []), answered]

    def said(row: Row) -> list[tuple[str, dict[str, str]]]:
        text = _text(row, asked)
        if context and is_filled(row.get(context)):
            text = f"{text}\n\n{_text(row, context)}"
        before = _history(row.get(history), history) if history else []
        return [*system_of(row), *before, (asked, {"role": "user", "content": text})]

    def question(row: Row) -> Conversation:
        return _conversation(" and ".join(columns[:-1]), said(row))

    def read(row: Row) -> Conversation:
        answer = (answered, {"role": "assistant", "content": _answer(row, answered)})
        return _conversation(" and ".join(columns), [*said(row), answer])

    more = (column for column in (context, history) if column)
    return Format(name, (asked, answered), (*more, *SYSTEM), read, question, joined)


def _history(value: Any, column: str) -> list[tuple[str, dict[str, str]]]:
    """Alpaca's earlier turns: a list of [question, answer]."""
    if not is_filled(value):
        return []
    form = '[["question", "answer"], ...]'
    turns = parsed(value, column, form)
    said = []
    for number, turn in enumerate(turns if isinstance(turns, list | tuple) else [turns]):
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise DataError(
                f"{column}[{number}] is {str(turn)[:60]!r}",
                expected=form,
                do="write the earlier turns in that form, or remove the row",
            )
        said.append((f"{column}[{number}][0]", {"role": "user", "content": turn[0]}))
        said.append((f"{column}[{number}][1]", {"role": "assistant", "content": turn[1]}))
    return said


def _alpaca_words(row: Row) -> tuple[str, str]:
    """As Stanford Alpaca was trained (github.com/tatsu-lab/stanford_alpaca, train.py)."""
    for column in ("system", "history"):
        if is_filled(row.get(column)) and row[column] != []:
            raise DataError(
                f"{column} holds something, but the tokenizer has no chat template to write it with",
                expected="instruction, input and output alone, or a tokenizer with a chat template",
                do=f"set model.tokenizer to one that has it, or remove {column}",
            )
    instruction, more = _text(row, "instruction"), row.get("input")
    if is_filled(more):
        prompt = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{_text(row, 'input')}\n\n### Response:"
        )
    else:
        prompt = (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Response:"
        )
    return prompt, _answer(row, "output")


def _list(name: str, column: str) -> Format:
    """A list of messages, ShareGPT's or OpenAI's."""

    def read(row: Row) -> Conversation:
        talk, system = in_column(row[column], column, takes_other_roles=True), system_of(row)
        messages, labels = [message for _, message in system], [label for label, _ in system]
        return replace(talk, messages=[*messages, *talk.messages], labels=[*labels, *talk.labels])

    return Format(name, (column,), SYSTEM, read, read)


FORMATS = (
    _list("ShareGPT", "conversations"),
    _list("ShareGPT", "conversation"),
    _pair("Alpaca", "instruction", "output", "input", "history", _alpaca_words),
    _pair("instructions with responses", "instruction", "response", "context"),
    _pair("questions with answers", "question", "answer"),
    _pair("questions with responses", "question", "response"),
    _pair("queries with responses", "query", "response"),
)
