"""Where the answers stand in a conversation that a chat template has rendered.

A template may render a message in another way once more follow (reasoning is dropped from earlier turns), and a text may
occur anywhere (an answer "d" also in "<|im_end|>"), so nothing is searched for: an answer is where the rendering changes
when a mark that occurs nowhere takes the answer's place.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import jinja2

from toolkit.data.messages import Turn
from toolkit.errors import DataError

Span: TypeAlias = tuple[int, int]

MARK = "\ue0a1\ue0a2\ue0a3"
"""Characters for private use: no text of a data set has them in this order."""


class _LeftOut(DataError):
    """The template does not render an answer's text."""


@dataclass(frozen=True)
class Frame:
    """What a template puts around an answer."""

    prompt: str = ""
    """What asks for one: the generation prompt; may open a reasoning block."""
    header: str = ""
    """What of it stands before an earlier answer, too."""
    closing: str | None = None
    """What follows the last answer: the token that ends it, white space. None: not known."""


def answer_spans(
    tokenizer: Any, turns: Sequence[Turn], text: str, where: str, *, optional: Container[int] | None = None
) -> dict[int, Span]:
    """Character spans in `text`, the rendering of `turns`, of what the model has to produce, by index of the message.

    From the generation prompt to the token that ends the turn, without white space after it. Raises DataError where the
    template loses an answer's text, unless `optional` is given: then such an answer has no span, and neither has one of
    the messages in it whose place cannot be told.
    """
    spans: dict[int, Span] = {}
    floor = 0
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            try:
                spans[index] = _span(tokenizer, turns, index, text, floor, where)
            except DataError as error:
                nowhere = isinstance(error, _LeftOut) and not {"tool_calls", "reasoning_content"} & turn.keys()
                if optional is None or not (nowhere or index in optional):
                    raise
                continue
            floor = spans[index][1]
    return spans


def render(tokenizer: Any, turns: Sequence[Turn], where: str, *, prompt: bool = False) -> str:
    """`turns` through the chat template. Raises DataError when it refuses them."""
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the tokenizer's chat template refuses {where} with the roles {roles}: {str(error)[:200]}",
            expected="messages in the order that the template knows",
            do="reorder or merge the messages (some templates know no system role), or choose another tokenizer",
        ) from None


def frame(tokenizer: Any) -> Frame:
    """What the chat template of `tokenizer` puts around an answer."""
    return _frame(tokenizer, str(tokenizer.get_chat_template()))


@lru_cache(maxsize=8)
def _frame(tokenizer: Any, template: str) -> Frame:
    """As seen on a conversation made up for it; `template` is there because a tokenizer's may be replaced."""
    question, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": MARK}
    try:
        base = render(tokenizer, [question], "")
        prompted = render(tokenizer, [question], "", prompt=True)
        last = render(tokenizer, [question, answer], "")
        earlier = render(tokenizer, [question, answer, question], "")
    except DataError:
        return Frame()
    if MARK not in last:
        return Frame()
    closing = last.partition(MARK)[2]
    if not prompted.startswith(base) or not earlier.startswith(base):
        return Frame(closing=closing)
    shared = _same_start(prompted, earlier.partition(MARK)[0])
    return Frame(prompted[len(base) :], prompted[len(base) : shared], closing)


def _span(tokenizer: Any, turns: Sequence[Turn], index: int, text: str, floor: int, where: str) -> Span:
    before = render(tokenizer, turns[:index], where, prompt=True) if index else None  # no template renders nothing
    after = text if index + 1 == len(turns) else render(tokenizer, turns[: index + 1], where)
    if before is not None and text.startswith(before) and text.startswith(after):
        start, end = len(before), len(after)
    else:
        marked = [*turns[:index], _marked(turns[index]), *turns[index + 1 :]]
        first, last = _content(text, render(tokenizer, marked, where), f"{where}[{index}]")
        if before is not None and text.startswith(before):
            start = len(before)
        else:
            start = _after_header(text, frame(tokenizer), floor, first)
        end = len(after)
        if not text.startswith(after):
            shorter = render(tokenizer, marked[: index + 1], where)
            tail = after[_content(after, shorter, f"{where}[{index}]")[1] :]
            kept = next((part for part in (tail, tail.rstrip()) if text.startswith(part, last)), "")
            end = last + len(kept)
    closing = frame(tokenizer).closing
    if closing is not None and not closing.strip():  # turns end by white space only: then that has to be learned
        return start, end
    return start, start + len(text[start:end].rstrip())


def _marked(turn: Turn) -> Turn:
    """`turn` with MARK as its text, or as the name of its first tool call where it has no text."""
    if turn.get("content", "").strip() or not turn.get("tool_calls"):
        return {**turn, "content": MARK}
    first, *others = turn["tool_calls"]
    if isinstance(first.get("function"), dict):
        first = {**first, "function": {**first["function"], "name": MARK}}
    else:
        first = {**first, "name": MARK}
    return {**turn, "tool_calls": [first, *others]}


def _content(text: str, marked: str, where: str) -> Span:
    """Where in `text` stands what MARK replaces in `marked`."""
    if MARK not in marked:
        raise _LeftOut(
            f"the tokenizer's chat template leaves out the text of {where}",
            expected="a template that keeps an answer's text, or one with {% generation %} blocks",
            do="choose a tokenizer with such a template, or set task.train_on='all'",
        )
    first = _same_start(text, marked)
    return first, max(first, len(text) - _same_start(text[::-1], marked[::-1]))


def _same_start(one: str, other: str) -> int:
    """How many characters both start with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _after_header(text: str, around: Frame, floor: int, first: int) -> int:
    """Where in `text` the header of the turn ends whose answer begins at `first`; the turn before ends at `floor`."""
    for header in (around.prompt, around.header):
        if header and (place := text.rfind(header, floor, first)) >= 0:
            return place + len(header)
    return first
