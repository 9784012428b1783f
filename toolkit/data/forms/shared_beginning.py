"""Two answers that hold the whole conversation each: where the prompt that they share ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from toolkit.data.forms.messages import FLAGS, Conversation, Turn, check_messages
from toolkit.errors import DataError

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_WANTED = "one conversation up to the answers, and an answer of the assistant in each"


def conversations_apart(talks: Sequence[Conversation], asked: Conversation | None) -> list[Conversation]:
    """Two conversations with their shared messages as context. Raises DataError where nothing, or all, is shared.

    `asked` is a prompt that the row has beside them: it must be part of what they share.
    """
    turns = [check_messages(talk, train_on="assistant")[0] for talk in talks]
    count = _shared(turns, talks)
    if asked is not None:
        said, _ = check_messages(asked, train_on="assistant")
        if _key(said[-1]) not in map(_key, turns[0][:count]):
            raise DataError(
                f"{asked.where} is not in the messages with which {' and '.join(talk.where for talk in talks)} begin",
                expected="answers alone, or whole conversations with the prompt in them",
                do="write the answers alone, or remove the prompt's column (name one that is not there)",
            )
    return [replace(talk, messages=_context(talk, count), num_context=count) for talk in talks]


def _context(talk: Conversation, count: int) -> list[object]:
    """The messages of `talk`, of which the first `count` say no more that they are learned: they are the prompt."""
    plain = [
        {key: value for key, value in message.items() if key not in FLAGS}
        for message in talk.messages[:count]
        if isinstance(message, Mapping)
    ]
    return [*plain, *talk.messages[count:]]


def _key(turn: Turn) -> tuple[str, str]:
    return turn["role"], turn["content"].strip()


def _shared(turns: Sequence[list[Turn]], talks: Sequence[Conversation]) -> int:
    """The number of messages that both conversations begin with; of two that are the same, those before the last answer."""
    if len(turns) == 1:
        raise DataError(
            f"{talks[0].labels[0]} has the role {turns[0][0]['role']!r}",
            expected="an answer, which begins with a message of the assistant",
            do="move what comes before it to the prompt, or remove the row",
        )
    one, other = turns
    names = " and ".join(talk.where for talk in talks)
    count = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if count is None and len(one) == len(other):
        count = len(one) - 1
    if count is None:
        shorter, longer = sorted(talks, key=lambda talk: len(talk.messages))
        raise DataError(
            f"{longer.where} goes on after the last message of {shorter.where}, and is the same before",
            expected=_WANTED,
            do="remove the row, or write two answers to one prompt",
        )
    if count == 0:
        raise DataError(
            f"{names} begin with different messages, and there is no column with a prompt",
            expected=_WANTED,
            do="write the prompt in a column of its own, or remove the row",
        )
    for turn, talk in zip((one[count], other[count]), talks, strict=True):
        if turn["role"] != "assistant":
            raise DataError(
                f"{names} differ in a message of the role {turn['role']!r}, {talk.labels[count]}",
                expected=_WANTED,
                do="remove the row, or write two answers to one prompt",
            )
    return count


def texts_apart(texts: Mapping[str, str]) -> tuple[str, list[str], list[Conversation | None]]:
    """What two texts both begin with, what each goes on with, and both as conversations where they are written as such.

    Transcripts are those of Anthropic, "\\n\\nHuman: ...\\n\\nAssistant: ...". Other texts are cut at the last white space
    that they share, so that an answer begins with a whole word. Raises DataError where they share no word.
    """
    one, other = texts.values()
    if all(_SPEAKER.match(text) for text in texts.values()):
        talks = conversations_apart([_transcript(text, column) for column, text in texts.items()], None)
        start = [mark.end() for mark in _SPEAKER.finditer(one)][talks[0].num_context]
        return one[:start], [one[start:], other[start:]], list(talks)
    pairs = enumerate(zip(one, other, strict=False))
    same = one[: next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))]
    if same in (one, other):
        same = same.rstrip()  # of two that are the same, or of one that goes on: the last word is the answer
    start = max((match.start() for match in re.finditer(r"\s+", same)), default=0)
    if not same[:start].strip():
        raise DataError(
            f"{' and '.join(texts)} share no beginning, and there is no column with a prompt",
            expected="a column prompt (or question, or instruction), or texts that both begin with the prompt",
            do="set the task's field to the column that holds the prompt, or remove the row",
        )
    return same[:start], [one[start:], other[start:]], [None, None]


def _transcript(text: str, column: str) -> Conversation:
    """The messages of a text in which "Human:" and "Assistant:" speak in turn."""
    marks = list(_SPEAKER.finditer(text))
    stops = [*(mark.start() for mark in marks[1:]), len(text)]
    messages = [
        {"role": _ROLES[mark[1]], "content": text[mark.end() : stop].strip()}
        for mark, stop in zip(marks, stops, strict=True)
    ]
    return Conversation(column, messages, [f"{column}, message {number}" for number in range(1, len(messages) + 1)])
