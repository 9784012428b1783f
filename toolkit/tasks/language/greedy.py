"""The answer that a language model gives to one prompt, to look at."""

from __future__ import annotations

from typing import Any

from toolkit.data.forms.chat_template import template_of
from toolkit.models.decoding import Generate, GenerationSettings, left_padded


def greedy_answer(generate: Generate, tokenizer: Any, prompt: str | None, most_tokens: int) -> str | None:
    """The most likely answer of at most `most_tokens` (through the chat template where there is one); None without a prompt.
    Collective.
    """
    if prompt is None:
        return None
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        prompt = template_of(tokenizer).text(messages, "task.sample_prompt", prompt=True)
    tokens = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    settings = GenerationSettings(most_tokens, pad_id=tokenizer.pad_token_id)
    answer = generate(left_padded([tokens], 0), settings)[0]
    return str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
