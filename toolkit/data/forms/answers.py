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

from toolkit.data.forms.chat_template import Template
from toolkit.data.forms.messages import Turn
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
    template: Template,
    turns: Sequence[Turn],
    text: str,
    where: str,
    labels: Sequence[str],
    *,
    optional: Container[int] | None = None,
) -> dict[int, Span]:
    """Character spans in `text`, the rendering of `turns`, of what the model has to produce, by index of the message.

    From the generation prompt to the token that ends the turn, without white space after it. Raises DataError where the
    template loses an answer's text, unless `optional` is given: then such an answer has no span, and neither has one of
    the messages in it whose place cannot be told. `where` names the conversation in messages, `labels` each message of it.
    """
    spans: dict[int, Span] = {}
    floor = 0
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            try:
                spans[index] = _Search(template, turns, text, where, labels).span(index, floor)
            except DataError as error:
                nowhere = isinstance(error, _LeftOut) and not {"tool_calls", "reasoning_content"} & turn.keys()
                if optional is None or not (nowhere or index in optional):
                    raise
                continue
            floor = spans[index][1]
    return spans


def frame(template: Template) -> Frame:
    """What `template` puts around an answer."""
    return _frame(template.tokenizer, template.source)


@lru_cache(maxsize=8)
def _frame(tokenizer: Any, source: str) -> Frame:
    """As seen on a conversation made up for it; `source` is there because a tokenizer's may be replaced."""
    question, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": MARK}
    template = Template(tokenizer, source)
    try:
        base = template.text([question], "")
        prompted = template.text([question], "", prompt=True)
        last = template.text([question, answer], "")
        earlier = template.text([question, answer, question], "")
    except DataError:
        return Frame()
    if MARK not in last:
        return Frame()
    closing = last.partition(MARK)[2]
    if not prompted.startswith(base) or not earlier.startswith(base):
        return Frame(closing=closing)
    shared = _same_start(prompted, earlier.partition(MARK)[0])
    return Frame(prompted[len(base) :], prompted[len(base) : shared], closing)


@dataclass(frozen=True)
class _Search:
    """The answers of one conversation."""

    template: Template
    turns: Sequence[Turn]
    text: str
    where: str
    labels: Sequence[str]

    def span(self, index: int, floor: int) -> Span:
        """Of the answer `index`; the answer before it ends at `floor`."""
        template, turns, text, where = self.template, self.turns, self.text, self.where
        before = template.text(turns[:index], where, prompt=True) if index else None  # no template renders nothing
        after = text if index + 1 == len(turns) else template.text(turns[: index + 1], where)
        if before is not None and text.startswith(before) and text.startswith(after):
            start, end = len(before), len(after)
        else:
            marked = self._marked(index)
            first, last = self._content(text, template.text(marked, where), index)
            start, end = self._start(index, before, floor, first), len(after)
            if not text.startswith(after):
                shorter = template.text(marked[: index + 1], where)
                tail = after[self._content(after, shorter, index)[1] :]
                whole = (part for part in (tail, tail.rstrip()) if text.startswith(part, last))
                kept = next(whole, None)
                if kept is None:  # the end of the last answer is another one than that of those before it
                    kept = _special_at(template.tokenizer, text, last)
                end = last + len(kept)
        closing = frame(template).closing
        if closing is not None and not closing.strip():  # turns end by white space only: then that has to be learned
            return start, end
        return start, start + len(text[start:end].rstrip())

    def _start(self, index: int, before: str | None, floor: int, first: int) -> int:
        """Where the answer begins whose text begins at `first`: behind the header of its turn."""
        text, around = self.text, frame(self.template)
        if before is not None and text.startswith(before):
            return len(before)
        for header in (around.prompt, around.header):
            if header and (place := text.rfind(header, floor, first)) >= 0:
                return place + len(header)
        if before is None or not self.turns[index - 1]["content"].strip():
            return first
        # Nothing asks for an answer: it begins where the message before it ends.
        marked = self._marked(index - 1)
        try:
            asked = self._content(text, self.template.text(marked, self.where), index - 1)[1]
            for prompt in (True, False):
                shorter = self.template.text(marked[:index], self.where, prompt=prompt)
                before = self.template.text(self.turns[:index], self.where, prompt=prompt)
                tail = before[self._content(before, shorter, index - 1)[1] :]
                if text.startswith(tail, asked):
                    return asked + len(tail)
        except _LeftOut:  # of the message before: it says nothing about this one
            pass
        return first

    def _marked(self, index: int) -> list[Turn]:
        return [*self.turns[:index], _marked(self.turns[index]), *self.turns[index + 1 :]]

    def _content(self, text: str, marked: str, index: int) -> Span:
        """Where in `text` stands what MARK replaces in `marked`."""
        if MARK not in marked:
            raise _LeftOut(
                f"the tokenizer's chat template leaves out the text of {self.labels[index]}",
                expected="a template that keeps an answer's text, or one with {% generation %} blocks",
                do="choose a tokenizer with such a template, or set task.train_on='all'",
            )
        first = _same_start(text, marked)
        return first, max(first, len(text) - _same_start(text[::-1], marked[::-1]))


def _marked(turn: Turn) -> Turn:
    """`turn` with MARK as its text, or as the name of its first tool call where it has no text."""
    if turn["content"].strip() or not turn.get("tool_calls"):
        return {**turn, "content": MARK}
    first, *others = turn["tool_calls"]
    return {**turn, "tool_calls": [{**first, "function": {**first["function"], "name": MARK}}, *others]}


def _special_at(tokenizer: Any, text: str, place: int) -> str:
    """The special token that stands in `text` at `place`, or an empty text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return max((token for token in special if text.startswith(token, place)), key=len, default="")


def _same_start(one: str, other: str) -> int:
    """How many characters both start with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))
