"""One chat template: what it makes of messages and tools, and in which form it takes them.

Templates differ in what they can read: the text as a string or as a list of parts, no text beside tool calls as "" or
as no key at all, the arguments of a call as an object (as transformers documents it) or as JSON text. Which form a
template takes is found out once, on conversations made up for it; all messages are then given to it in that form.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2

from toolkit.data.forms.images import as_parts
from toolkit.data.forms.messages import Turn
from toolkit.errors import DataError

_NAME, _KEY, _VALUE = "mark_of_a_name", "mark_of_a_key", "mark_of_a_value"
_QUESTION = {"role": "user", "content": "Q"}
_DEVELOPER = re.compile(r"""['"]developer['"]""")


@dataclass(frozen=True)
class Habits:
    """In which form a template takes what can be written in several, and what it shows of it. None: it refuses to say."""

    takes_parts: bool = False
    """The text of a message as [{"type": "text", "text": ...}] and not as a string."""
    takes_empty_text: bool = True
    """"" beside tool calls; False: no "content" at all."""
    takes_json_text: bool = False
    """The arguments of a tool call as JSON text and not as an object."""
    takes_developer: bool = True
    """The role developer; False: such a message is given as one of the system, which is what OpenAI calls it for others."""
    shows_text: bool | None = None
    shows_calls: bool | None = None
    shows_tools: bool | None = None


@dataclass(frozen=True)
class Template:
    """The chat template that a tokenizer has for conversations with, or without, `tools`."""

    tokenizer: Any
    source: str
    tools: list[dict[str, Any]] | None = None
    """Function schemas, {"type": "function", "function": {"name": ...}}."""

    @property
    def habits(self) -> Habits:
        """What is known about the template."""
        return _habits(self.tokenizer, self.source)

    def text(self, turns: Sequence[Turn], where: str, *, prompt: bool = False) -> str:
        """`turns` as the template writes them. Raises DataError when it refuses them; `where` names them in messages."""
        try:
            return _rendered(self.tokenizer, self.source, suited(turns, self.habits), self.tools, prompt)
        except _REFUSALS as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"the tokenizer's chat template refuses {where} with the roles {roles}: {str(error)[:200]}",
                expected="messages in the order, and with the fields, that the template knows",
                do="reorder, merge or complete the messages (some templates know no system role, some want an id in each "
                "tool call), or choose another tokenizer",
            ) from None

    def marked_tokens(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """The tokens of `turns`, and for each 1 where it stands in a {% generation %} block, else 0."""
        encoded = self.tokenizer.apply_chat_template(
            suited(turns, self.habits),
            tools=self.tools,
            chat_template=self.source,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
        )
        return encoded["input_ids"], encoded["assistant_masks"]

    def check_shows(self, turns: Sequence[Turn], labels: Sequence[str]) -> None:
        """Raise DataError for what the template would leave out of `turns`: all texts, or the tool calls."""
        habits = self.habits
        if habits.shows_text is False:
            raise DataError(
                "the tokenizer's chat template leaves out the text of every answer",
                expected="a template that writes what the messages say",
                do="choose another tokenizer, or correct its chat template",
            )
        if habits.shows_calls is not False:
            return
        for turn, label in zip(turns, labels, strict=True):
            if turn.get("tool_calls"):
                raise DataError(
                    f"{label}.tool_calls: the tokenizer's chat template leaves out tool calls",
                    expected="a template that writes them, as models for tool use have",
                    do="choose a tokenizer with such a template, write the call into the content in the words that the "
                    "model shall learn, or remove the row",
                )


_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


def template_of(tokenizer: Any, tools: list[dict[str, Any]] | None = None) -> Template:
    """The template of `tokenizer`, which must have one; a tokenizer may have another one for tools."""
    return Template(tokenizer, str(tokenizer.get_chat_template(tools=tools)), tools)


def takes_tools(tokenizer: Any) -> bool:
    """Whether `tokenizer` has a chat template that shows tools, as far as can be told."""
    return bool(tokenizer.chat_template) and template_of(tokenizer, []).habits.shows_tools is not False


def suited(turns: Sequence[Turn], habits: Habits) -> list[Turn]:
    """`turns` in the form that a template with these `habits` takes."""
    return [_suited(turn, habits) for turn in turns]


def _suited(turn: Turn, habits: Habits) -> Turn:
    turn = dict(turn)
    text = turn.get("content")
    if turn["role"] == "developer" and not habits.takes_developer:
        turn["role"] = "system"
    if turn.get("tool_calls"):
        if not text and not habits.takes_empty_text:
            turn.pop("content", None)
        if habits.takes_json_text:
            turn["tool_calls"] = [_with_json_text(call) for call in turn["tool_calls"]]
    if isinstance(turn.get("content"), str):
        parts = as_parts(turn["content"])
        if parts is not None or habits.takes_parts:
            turn["content"] = parts or [{"type": "text", "text": text}]
    return turn


def _with_json_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _rendered(tokenizer: Any, source: str, turns: list[Turn], tools: list[dict[str, Any]] | None, prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            turns, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=prompt
        )
    )


@lru_cache(maxsize=8)
def _habits(tokenizer: Any, source: str) -> Habits:
    def tried(turns: list[Turn], habits: Habits, tools: list[dict[str, Any]] | None = None) -> str | None:
        try:
            return _rendered(tokenizer, source, suited(turns, habits), tools, False)
        except _REFUSALS:
            return None

    answer = [_QUESTION, {"role": "assistant", "content": _VALUE}]
    texts = {parts: tried(answer, Habits(takes_parts=parts)) for parts in (False, True)}
    takes_parts = _VALUE not in (texts[False] or "") and _VALUE in (texts[True] or "")
    shows_text = _shown([text and _VALUE in text for text in texts.values()])

    calls = {}
    for empty, text in itertools.product((True, False), (False, True)):
        form = Habits(takes_parts, takes_empty_text=empty, takes_json_text=text)
        calls[form] = [tried(turns, form) for turns in _CALLS]
    clean = [form for form, found in calls.items() if any(_is_call(said) and not _is_python(said) for said in found)]
    usable = [*clean, *(form for form, found in calls.items() if any(map(_is_call, found))), Habits(takes_parts)]
    shows_calls = _shown([said and _is_call(said) for found in calls.values() for said in found])

    tool = {"type": "function", "function": {"name": _NAME, "description": "D", "parameters": _NO_PARAMETERS}}
    shown = [tried(turns, Habits(takes_parts), [tool]) for turns in ([_QUESTION], answer)]
    return Habits(
        takes_parts,
        usable[0].takes_empty_text,
        usable[0].takes_json_text,
        _DEVELOPER.search(source) is not None,
        shows_text,
        shows_calls,
        _shown([said and _NAME in said for said in shown]),
    )


_NO_PARAMETERS = {"type": "object", "properties": {}}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "callmark1", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}},
    ],
}
_RESULT = {"role": "tool", "name": _NAME, "tool_call_id": "callmark1", "content": "R"}
_CALLS: list[list[Turn]] = [[_QUESTION, _CALL], [_QUESTION, _CALL, _RESULT, {"role": "assistant", "content": "A"}]]


def _is_call(said: str | None) -> bool:
    return said is not None and _NAME in said and _VALUE in said


def _is_python(said: str | None) -> bool:
    """Whether arguments stand in `said` as Python writes an object, or as JSON text written as JSON once more."""
    return said is not None and (f"'{_KEY}'" in said or f'\\"{_KEY}\\"' in said)


def _shown(found: list[Any]) -> bool | None:
    """True where any is, False where there were some and none is, None where all were refused."""
    return True if any(found) else (False if any(each is not None for each in found) else None)
