"""The answer that a language model gives to one prompt, to look at."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from toolkit.data.forms.chat_template import template_of


def greedy_answer(model: nn.Module, tokenizer: Any, prompt: str | None, most_tokens: int) -> str | None:
    """The most likely answer of at most `most_tokens` (through the chat template where there is one); None without a prompt.
    Collective.
    """
    if prompt is None:
        return None
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        prompt = template_of(tokenizer).text(messages, "task.sample_prompt", prompt=True)
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    tokens = encoded["input_ids"].to(next(model.parameters()).device)
    generated = model.generate(  # type: ignore[operator]
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=most_tokens,
        do_sample=False,
        use_cache=True,
        # Ranks that gather weights from each other must run as many forward passes, also where rounding lets one
        # of them stop earlier. transformers cannot see by itself that they do.
        synced_gpus=dist.is_initialized() and dist.get_world_size() > 1,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
    )
    return str(tokenizer.decode(generated[0, tokens.shape[1] :], skip_special_tokens=True)).strip()
