"""Rows that say which of two answers is better, or of one answer whether it is good.

The forms of the field, by their columns: TRL's prompt/chosen/rejected as texts or messages, without a prompt where both
answers are whole conversations with a shared beginning, and prompt/completion/label; the question in the columns of
Alpaca, ShareGPT, or question and answer, as LLaMA-Factory has it; OpenAI's input/preferred_output/non_preferred_output;
and texts "\\n\\nHuman: ...\\n\\nAssistant: ...", as in Anthropic's preferences about helpful and harmless answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.example import Row
from toolkit.data.forms.conversations import in_column, messages_in
from toolkit.data.forms.formats import is_filled, system_of
from toolkit.data.forms.messages import Conversation, EmptyAnswer, check_messages, not_text
from toolkit.data.forms.prompts import Asked, after, asked_of, begins_with_answer, behind
from toolkit.data.forms.recognised import Recognised
from toolkit.data.forms.shared_beginning import conversations_apart, texts_apart
from toolkit.data.forms.tool_calls import Schema, kind_of, tool_columns, tools_of
from toolkit.data.reading.column_names import ColumnMissing
from toolkit.errors import DataError, first_few

OPENAI = ("input", "preferred_output", "non_preferred_output")
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Answered:
    """A prompt with one answer to it, in one of both forms or in both."""

    talk: Conversation | None
    """The prompt's messages, and from `num_context` on the answer's. None: plain texts that go through no template."""
    texts: tuple[str, str] | None = None
    """Prompt and answer, joined as they are: for a tokenizer without a chat template."""


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt."""

    chosen: Answered
    rejected: Answered
    form: Recognised

    @property
    def prompt(self) -> Conversation | None:
        """The messages that both answers follow; None for plain texts."""
        talk = self.chosen.talk
        if talk is None:
            return None
        count = talk.num_context
        return replace(talk, messages=talk.messages[:count], labels=talk.labels[:count])

    @property
    def is_tie(self) -> bool:
        """Whether both answers are the same: nothing to learn. Public data sets have such rows."""
        one, other = self.chosen, self.rejected
        if one.talk is None or other.talk is None:
            return one.texts == other.texts
        return list(one.talk.messages) == list(other.talk.messages)


@dataclass(frozen=True)
class Unpaired:
    """One answer to a prompt, and whether it is good."""

    answer: Answered
    is_good: bool
    form: Recognised


def preference_of(
    row: Row,
    *,
    prompt_field: str = "prompt",
    chosen_field: str = "chosen",
    rejected_field: str = "rejected",
    with_tools: bool = False,
) -> Preference:
    """The two answers of `row`, and its tools when `with_tools`, for a template that shows them.

    Raises DataError with the column: ColumnMissing for an answer that is not there, EmptyAnswer for an empty one; and for
    answers of two kinds, and whole conversations that share no beginning or of which one goes on where the other ends.
    """
    if set(OPENAI) <= row.keys() and not {chosen_field, rejected_field} & row.keys():
        prompt_field, chosen_field, rejected_field = OPENAI
        row = _without_frame(row)
    both = (chosen_field, rejected_field)
    if not {*both} & row.keys() and {"completion", "label"} <= row.keys():
        raise ColumnMissing(
            f"{chosen_field} is not there; the columns are {first_few(sorted(row))}",
            expected=f"{chosen_field} and {rejected_field}, two answers to one prompt; this is one answer with a judgement",
            do="pass --task.name kto, which learns from such rows",
        )
    values = {column: _answer(row, column, both) for column in both}
    _check_alike(values, row)
    asked = asked_of(row, prompt_field, values)
    if isinstance(values[chosen_field], str):
        chosen, rejected = _texts(asked, values)
    else:
        chosen, rejected = _conversations(asked, values)
    tools = tools_of(row) if with_tools else None
    read = {*both, *(asked.columns if asked else ()), *(tool_columns(row) if with_tools else ())}
    return Preference(
        _with_tools(chosen, tools),
        _with_tools(rejected, tools),
        Recognised(
            "preferences" if asked else "preferences with the prompt in both answers",
            tuple(column for column in row if column in read),
        ),
    )


def unpaired_of(
    row: Row,
    *,
    prompt_field: str = "prompt",
    completion_field: str = "completion",
    label_field: str = "label",
    with_tools: bool = False,
) -> Unpaired:
    """The answer of `row` and whether it is good; a prompt with a completion, or a conversation whose last answer is meant.

    Raises DataError with the column, as `preference_of` does, and for a label that is neither true nor false.
    """
    label = row.get(label_field)
    is_good = judgement(label)
    if is_good is None:
        if label_field not in row and {"chosen", "rejected"} <= row.keys():
            raise ColumnMissing(
                f"{label_field} is not there; the columns are {first_few(sorted(row))}",
                expected=f"{completion_field} and {label_field}, one answer with a judgement; these are two answers to one prompt",
                do="pass --task.name dpo (or orpo, simpo, reward_model), which learn from such rows",
            )
        if label_field not in row:
            raise _missing(label_field, row, (label_field,))
        raise DataError(
            f"{label_field} is {'null' if label is None else repr(label)[:40]}",
            expected="true for a good answer, false for a bad one (1 and 0 are taken, too)",
            do="write one of them, or remove the row",
        )
    talk = None if completion_field in row else next((name for name in _TALKS if is_filled(row.get(name))), None)
    if talk is not None:
        answer, columns = _last_answer(row, talk), {talk, label_field}
    else:
        values = {completion_field: _answer(row, completion_field, (completion_field,))}
        asked = asked_of(row, prompt_field, values)
        if asked is None:
            raise _missing(prompt_field, row, (completion_field, label_field))
        [answer] = (_texts if isinstance(values[completion_field], str) else _conversations)(asked, values)
        columns = {*asked.columns, completion_field, label_field}
    tools = tools_of(row) if with_tools else None
    columns |= {*(tool_columns(row) if with_tools else ())}
    form = Recognised("answers with a label", tuple(column for column in row if column in columns))
    return Unpaired(_with_tools(answer, tools), is_good, form)


def judgement(label: Any) -> bool | None:
    """Whether `label` says that an answer is good; None where it says neither."""
    return _LABELS.get(str(label).strip().casefold())


_TALKS = ("messages", "conversations", "conversation")


def _without_frame(row: Row) -> Row:
    """A row of OpenAI's form with the messages themselves in "input", and its tools beside them."""
    given = row["input"]
    if not isinstance(given, Mapping) or "messages" not in given:
        raise DataError(
            f"input is {kind_of(given)}: {str(given)[:60]!r}",
            expected='OpenAI\'s {"messages": [...], "tools": [...]}',
            do="write it in that form, or call the columns prompt, chosen and rejected",
        )
    tools = given.get("tools")
    return {**row, "input": given["messages"], **({"tools": tools} if tools else {})}


def _answer(row: Row, column: str, needed: Sequence[str]) -> Any:
    """The answer in `column`: a text, or a list of messages."""
    if column not in row:
        raise _missing(column, row, needed)
    value = messages_in(row[column])
    if isinstance(value, Mapping):
        return [value]
    if value is None or (
        isinstance(value, str | list | tuple) and not (value.strip() if isinstance(value, str) else value)
    ):
        raise EmptyAnswer(
            f"{column} is {'null' if value is None else 'empty'}",
            expected="an answer, as text or as messages",
            do="remove the row, or fill it in",
        )
    if not isinstance(value, str | list | tuple):
        raise not_text(column, value)
    return value


def _check_alike(values: Mapping[str, Any], row: Row) -> None:
    """Raise DataError where one answer is text and the other a list of messages."""
    lists = [column for column, value in values.items() if not isinstance(value, str)]
    if len(lists) == 1:
        [text] = values.keys() - {*lists}
        raise DataError(
            f"{lists[0]} is {kind_of(row[lists[0]])}, but {text} is text: {str(row[text])[:40]!r}",
            expected="both answers as text, or both as messages",
            do="write both in one form, or remove the row",
        )


def _texts(asked: Asked | None, values: Mapping[str, str]) -> list[Answered]:
    """Each of the texts as an answer to what is asked, or to what they begin with."""
    if asked is None:
        prompt, answers, talks = texts_apart(values)
        pairs = zip(talks, answers, strict=True)
        return [Answered(talk, (prompt, answer)) for talk, answer in pairs]
    return [
        Answered(
            after(asked, Conversation(column, [{"role": "assistant", "content": value}], [column])),
            None if asked.text is None else (asked.text, value),
        )
        for column, value in values.items()
    ]


def _conversations(asked: Asked | None, values: Mapping[str, Any]) -> list[Answered]:
    """Each of the lists of messages as an answer to what is asked, or to what they begin with."""
    talks = [in_column(value, column, takes_other_roles=True) for column, value in values.items()]
    if asked is not None and all(begins_with_answer(talk.messages) for talk in talks):
        return [Answered(after(asked, talk)) for talk in talks]
    return [Answered(talk) for talk in conversations_apart(talks, None if asked is None else asked.talk)]


def _last_answer(row: Row, column: str) -> Answered:
    """A whole conversation of which the last answer is judged."""
    talk = behind(system_of(row), in_column(row[column], column, takes_other_roles=True))
    turns, _ = check_messages(talk, train_on="assistant")
    if turns[-1]["role"] != "assistant":
        raise DataError(
            f"{talk.labels[-1]} has the role {turns[-1]['role']!r}",
            expected="a conversation that ends with the answer which the label is about",
            do="remove the messages after the answer, or the row",
        )
    return Answered(replace(talk, num_context=len(turns) - 1))


def _with_tools(answered: Answered, tools: list[Schema] | None) -> Answered:
    return answered if answered.talk is None else replace(answered, talk=replace(answered.talk, tools=tools))


def _missing(column: str, row: Row, needed: Sequence[str]) -> ColumnMissing:
    return ColumnMissing(
        f"{column} is not there; the columns are {first_few(sorted(row)) if row else '(none)'}",
        expected=f"{', '.join(needed)} and a prompt: a column prompt, question, instruction or conversations, or the "
        "beginning that both answers share"
        if len(needed) > 1 and needed[-1] != "label"
        else f"{', '.join(needed)} beside a prompt",
        do=f"name the column {column}, or set the field of the task to the column that holds it",
    )
