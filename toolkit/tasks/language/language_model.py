"""What the tasks of causal language models share: packed examples, answers that end, balanced routers, a sample."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from toolkit.data.example import Example, Row
from toolkit.models.decoding import Generate
from toolkit.models.heads import use_loss_head
from toolkit.models.router_balance import REAL, RouterBalance, is_asked_for
from toolkit.recipe import Task as Options
from toolkit.tasks.base import Batch, Task
from toolkit.tasks.language.greedy import greedy_answer
from toolkit.tasks.stop_tokens import trained_ends


class LanguageModelTask(Task):
    """A task whose model predicts each token from those before it."""

    auto_class = AutoModelForCausalLM
    can_pack = True
    is_causal = True

    def __init__(self, options: Options, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        self.balance: RouterBalance | None = None

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...]:
        """The tokens that carry loss at the ends of answers: of chats, completions or texts."""
        return trained_ends(rows, self.encode, self.tokenizer)

    def real_tokens(self, sequences: list[list[Example]], batch: Batch) -> Batch:
        """The tokens [B, T] that are no padding, for routers that are balanced over them."""
        if self.balance is None:
            return {}
        lengths = torch.tensor([sum(map(self.size, sequence)) for sequence in sequences])
        return {REAL: (torch.arange(batch["input_ids"].shape[1]) < lengths.unsqueeze(1)).long()}

    def prepare(self, model: nn.Module) -> None:
        """Let the output head compute what is learned itself, so that the logits never exist in full; balance routers."""
        use_loss_head(model)
        self.balance = RouterBalance(model) if is_asked_for(model.config) else None

    @property
    def adds_loss(self) -> bool:
        """Whether routers are balanced, as the model's config asks for."""
        return self.balance is not None

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """The greedy answer to task.sample_prompt (through the chat template where there is one). Collective."""
        return greedy_answer(generate, self.tokenizer, self.options.sample_prompt, self.options.sample_tokens)
