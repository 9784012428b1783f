"""Conversations, pairs of texts and plain text -> token ids and labels.

Labels come from character spans of the rendered text, mapped to tokens by the tokenizer's offsets: never from
comparing token ids, so a pad token that is also the end token loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toolkit.data.example import IGNORED, Example, Ints
from toolkit.data.forms.answers import Span, answer_spans, frame
from toolkit.data.forms.chat_template import Template, template_of
from toolkit.data.forms.messages import Conversation, TrainOn, Turn, check_messages, not_text, num_answered
from toolkit.errors import DataError

Places: TypeAlias = NDArray[np.int64]
"""[T, 2]: the characters from and to which each token stands."""
Read: TypeAlias = Callable[[str], tuple[Ints, Places]]
"""The text of a template -> its tokens [T] and their places in that text; none, both ends alike, for what no text stands for."""

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_conversation(
    tokenizer: Any, conversation: Conversation, *, train_on: TrainOn, read: Read | None = None
) -> Example:
    """One conversation, and the tools that it may use, through the tokenizer's own chat template.

    `read` makes tokens of what the template writes; None: the tokenizer does, and adds none of its own.

    With train_on="assistant" the labels are the assistant's turns, each with the token that ends the turn but without
    the white space after it; a template with {% generation %} blocks decides itself, except that the token after a
    block that ends an answer is trained, too. Answers with "weight": 0, and those of a prompt, carry no loss, and messages
    after the last answer are left out. Raises DataError for messages of the wrong shape, and for a missing or unsuitable
    template.
    """
    turns, learned = check_messages(conversation, train_on=train_on)
    if train_on == "assistant":
        turns = turns[: num_answered(turns, conversation.num_context)]
    where, labels = conversation.where, conversation.labels[: len(turns)]
    _check_template(tokenizer, where)
    template = template_of(tokenizer, conversation.tools)
    template.check_shows(turns, labels)
    text = template.text(turns, where)
    ids, offsets = plain_tokens(tokenizer, text) if read is None else read(text)
    if train_on == "all":
        trained = np.ones(len(ids), dtype=bool)
        spans = {} if all(learned) else answer_spans(template, turns, text, where, labels)
    elif not any(turn["role"] == "assistant" for turn in turns[conversation.num_context :]):
        raise DataError(
            f"{where} has no message of the role 'assistant'"
            f"{' after the prompt' if conversation.num_context else ''}, so nothing would be trained",
            expected="at least one answer in each conversation",
            do="remove the row, or set task.train_on='all'",
        )
    elif _GENERATION_BLOCK.search(template.source):
        # The template decides; a span is needed to add the token that ends an answer, and to leave one out.
        known = [index for index, weighs in enumerate(learned) if weighs]
        spans = answer_spans(template, turns, text, where, labels, optional=known)
        trained = _marked_by_template(template, turns, text, ids, offsets, list(spans.values()))
    else:
        spans = answer_spans(template, turns, text, where, labels)
        trained = np.logical_or.reduce([_inside(offsets, span) for span in spans.values()])
    for index, span in spans.items():
        if not learned[index]:
            trained &= ~_inside(offsets, span)
    return _labelled(ids, trained)


def ends_answers(tokenizer: Any) -> bool:
    """Whether the chat template of `tokenizer` puts a special token after an answer, at which generation can stop."""
    closing = frame(template_of(tokenizer)).closing
    if closing is None:
        return True
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    return not special.union(tokenizer.all_special_ids).isdisjoint(ids)


def encode_completion(tokenizer: Any, prompt: str, completion: str, *, train_on: TrainOn, where: str) -> Example:
    """A prompt and what should follow, joined as they are and ended: for tokenizers without a chat template."""
    start = 0 if train_on == "all" else len(prompt)
    return _ended(tokenizer, prompt + completion, start, where)


def encode_text(tokenizer: Any, text: object, *, where: str) -> Example:
    """Plain text, all of it trained, ended by the end token; blank text gives an example without tokens."""
    if not isinstance(text, str):
        raise not_text(where, text)
    if not text.strip():
        return {"input_ids": np.zeros(0, dtype=np.int32), "labels": np.zeros(0, dtype=np.int32)}
    return _ended(tokenizer, text, 0, where)


def _check_template(tokenizer: Any, where: str) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} holds conversations, but the tokenizer has no chat template",
            expected="a tokenizer with a chat template, as instruction-tuned models have",
            do="set model.tokenizer to one that has it, or write prompt/completion or text columns, with all the words that "
            "stand between question and answer",
        )


def _marked_by_template(
    template: Template, turns: list[Turn], text: str, ids: Ints, offsets: Places, spans: list[Span]
) -> NDArray[np.bool_]:
    """The tokens in {% generation %} blocks, and those that end an answer where a block leaves them out."""
    tokens, marks = template.marked_tokens(turns)
    plain, places = plain_tokens(template.tokenizer, text)
    if tokens != plain.tolist():
        raise DataError(
            "the tokenizer gives other tokens for a conversation than for the text that its chat template makes of it",
            expected="the same tokens both ways",
            do="choose another tokenizer, or a chat template without {% generation %} blocks",
        )
    trained = np.array(marks, dtype=bool)
    if not np.array_equal(plain, ids):
        learned = [_inside(offsets, (start, end)) for start, end in places[trained].tolist()]
        trained = np.logical_or.reduce([np.zeros(len(ids), dtype=bool), *learned])
    closing = (frame(template).closing or "").strip()
    for start, end in spans:
        marked = trained & _inside(offsets, (start, end))
        stop = int(offsets[marked, 1].max()) if marked.any() else end
        if closing and text[stop:end].strip() == closing:
            trained |= _inside(offsets, (stop, end))
    return trained


def plain_tokens(tokenizer: Any, text: str) -> tuple[Ints, Places]:
    """What `Read` promises, of a text whose special tokens all stand in it."""
    return tokens_of(tokenizer, text, add_special_tokens=False)


def tokens_of(tokenizer: Any, text: str, *, add_special_tokens: bool) -> tuple[Ints, Places]:
    """The tokens of `text` [T], and the characters [T, 2] from and to which each stands for it."""
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer {type(tokenizer).__name__} reports no character offsets",
            expected="a fast tokenizer (tokenizer.json)",
            do="set model.tokenizer to a directory with a tokenizer.json",
        )
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False, truncation=False
    )
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return np.array(encoded["input_ids"], dtype=np.int32), offsets


def _inside(offsets: Places, span: Span) -> NDArray[np.bool_]:
    """The tokens that share a character with `span`."""
    inside: NDArray[np.bool_] = (offsets[:, 1] > span[0]) & (offsets[:, 0] < span[1]) & (offsets[:, 0] < offsets[:, 1])
    return inside


def _labelled(ids: Ints, trained: NDArray[np.bool_]) -> Example:
    labels = np.where(trained, ids, IGNORED).astype(np.int32)
    labels[:1] = IGNORED  # nothing in the example predicts its first token
    return {"input_ids": ids, "labels": labels}


def _ended(tokenizer: Any, text: str, start: int, where: str) -> Example:
    """The tokens of `text`, trained from character `start` on, with the end token last, trained."""
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"the tokenizer has no end token to put after {where}",
            expected="a tokenizer with eos_token",
            do="set eos_token in the tokenizer's tokenizer_config.json, or set model.tokenizer to another one",
        )
    ids, offsets = tokens_of(tokenizer, text, add_special_tokens=True)
    example = _labelled(ids, _inside(offsets, (start, len(text))))
    labels = example["labels"]
    if len(ids) and ids[-1] == end:  # the tokenizer added it, outside of the text and hence of the span
        ids, labels = ids[:-1], labels[:-1]
    last = np.array([end], dtype=np.int32)
    return {"input_ids": np.concatenate([ids, last]), "labels": np.concatenate([labels, last])}
