"""Answers that are compared, or judged -> token ids and labels: the prompt without labels, the answer with them."""

from __future__ import annotations

from typing import Any

from toolkit.data.example import Example
from toolkit.data.forms.chat import encode_completion, encode_conversation
from toolkit.data.forms.preferences import Answered, Preference, Unpaired


def encode_preference(tokenizer: Any, preference: Preference) -> tuple[Example, Example]:
    """The prompt with the chosen answer, and with the rejected one: "input_ids" [T] and "labels" [T] of each.

    Labels are -100 on the prompt and the tokens themselves on the answer, with the one that ends it; they are not shifted.
    Raises DataError for what the chat template cannot say.
    """
    return encode_answered(tokenizer, preference.chosen), encode_answered(tokenizer, preference.rejected)


def encode_unpaired(tokenizer: Any, unpaired: Unpaired) -> Example:
    """The prompt with the answer, as of `encode_preference`."""
    return encode_answered(tokenizer, unpaired.answer)


def encode_answered(tokenizer: Any, answered: Answered) -> Example:
    """A prompt with one answer: through the chat template where there is one, else joined as the texts are, and ended."""
    if answered.talk is not None and (tokenizer.chat_template or answered.texts is None):
        return encode_conversation(tokenizer, answered.talk, train_on="assistant")
    assert answered.texts is not None
    prompt, answer = answered.texts
    return encode_completion(tokenizer, prompt, answer, train_on="assistant", where="prompt and answer")
