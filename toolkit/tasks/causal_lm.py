"""Causal language modelling: chat and instruction fine-tuning, and pretraining on plain text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from toolkit.data.chat import encode_messages, encode_prompt_completion, encode_text, ends_answers
from toolkit.data.example import IGNORED, Example, Row
from toolkit.data.row_kind import RowKind, row_kind
from toolkit.errors import DataError
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor, tell_documents
from toolkit.models.heads import token_loss, use_loss_head
from toolkit.models.router_balance import REAL, RouterBalance, is_asked_for
from toolkit.recipe import Data
from toolkit.recipe import Task as Options
from toolkit.tasks.protocol import NO_FIELDS, Batch, Sums
from toolkit.tasks.stop_tokens import trained_ends


class CausalLM:
    """Predict each token from those before it inside the same example.

    Rows hold messages, a prompt with a completion, or text (columns named in the data section).
    """

    auto_class: Any = AutoModelForCausalLM
    can_pack = True
    is_causal = True
    reads_padding = False
    new_head = False

    def __init__(self, options: Options, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
        self.options, self.data, self.tokenizer = options, data, tokenizer
        self.balance: RouterBalance | None = None

    def fit(self, rows: Iterable[Row], checkpoint: Any = None, fields: Mapping[str, Any] = NO_FIELDS) -> None:
        """Nothing to learn from the rows."""

    def remarks(self, rows: Iterable[Row]) -> list[str]:
        """A line where answers are learned without a token at which generation stops."""
        if not self.tokenizer.chat_template or ends_answers(self.tokenizer):
            return []
        try:
            kinds = [self._kind(row) for row in itertools.islice(rows, 1)]
        except DataError:  # a row of no form: said when it is encoded
            return []
        if "text" in kinds:
            return []
        return [
            "note: the tokenizer's chat template puts no special token after an answer, so none is learned at which "
            "generation stops"
        ]

    def config_overrides(self) -> dict[str, Any]:
        """Nothing in the config follows from the data."""
        return {}

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...]:
        """The tokens that carry loss at the ends of answers: of chats, completions or texts."""
        return trained_ends(rows, self.encode, self.tokenizer)

    def describe(self) -> dict[str, Any]:
        """The columns read and the tokens that carry loss."""
        fields = self.data.model_dump(include={"messages_field", "prompt_field", "completion_field", "text_field"})
        return {"task": "causal_lm", "train_on": self.options.train_on, **fields}

    def encode(self, row: Row) -> list[Example]:
        """One example: tokens, and labels that are -100 where nothing is learned."""
        data, train_on = self.data, self.options.train_on
        kind = self._kind(row)
        if kind == "messages":
            return [
                encode_messages(self.tokenizer, row[data.messages_field], train_on=train_on, where=data.messages_field)
            ]
        if kind == "prompt_completion":
            prompt, completion = row[data.prompt_field], row[data.completion_field]
            return [
                encode_prompt_completion(self.tokenizer, prompt, completion, train_on=train_on, where=data.prompt_field)
            ]
        return [encode_text(self.tokenizer, row[data.text_field], where=data.text_field)]

    def columns(self, row: Row) -> Collection[str]:
        """Those of the form that the row has."""
        data = self.data
        read: dict[RowKind, tuple[str, ...]] = {
            "messages": (data.messages_field,),
            "prompt_completion": (data.prompt_field, data.completion_field),
            "text": (data.text_field,),
        }
        return read[self._kind(row)]

    def _kind(self, row: Row) -> RowKind:
        data = self.data
        return row_kind(
            row,
            messages_field=data.messages_field,
            prompt_field=data.prompt_field,
            completion_field=data.completion_field,
            text_field=data.text_field,
        )

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids, position_ids, targets, each [B, T] with T the longest sequence; document_lengths [B, N].

        Positions restart with every example and the lengths say where, which keeps attention inside it (see
        `toolkit.models.attention`); padding is an example of its own. `targets` are shifted inside each example.
        """
        lengths = [sum(len(example["input_ids"]) for example in sequence) for sequence in sequences]
        shape = (len(sequences), max(lengths))
        filler = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        tokens = np.full(shape, filler, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        documents = []
        for index, sequence in enumerate(sequences):
            start = 0
            documents.append([len(example["input_ids"]) for example in sequence])
            for example in sequence:
                stop = start + len(example["input_ids"])
                tokens[index, start:stop] = example["input_ids"]
                positions[index, start:stop] = np.arange(stop - start)
                targets[index, start : stop - 1] = example["labels"][1:]
                start = stop
            positions[index, start:] = np.arange(shape[1] - start)
            documents[-1] += [shape[1] - start] if start < shape[1] else []
        return {
            "input_ids": torch.from_numpy(tokens),
            "position_ids": torch.from_numpy(positions),
            "targets": torch.from_numpy(targets),
            DOCUMENT_LENGTHS: lengths_tensor(documents),
            **self._real_tokens(lengths, shape[1]),
        }

    def _real_tokens(self, lengths: list[int], longest: int) -> Batch:
        """Where padding begins in each row, for routers that are balanced over the others."""
        if self.balance is None:
            return {}
        return {REAL: (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long()}

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """Equal parts; sequences are filled up to a multiple of `count` with a document of padding.

        document_lengths stay those of the whole sequences, which is what attention sees.
        """
        length = batch["input_ids"].shape[1]
        size = -(-length // count)
        extra = size * count - length
        fill = {
            "input_ids": torch.zeros(extra, dtype=torch.int64),
            "position_ids": torch.arange(extra),
            "targets": torch.full((extra,), IGNORED),
        }
        parts = {}
        for name, values in batch.items():
            if name == DOCUMENT_LENGTHS:
                parts[name] = nn.functional.pad(values, (0, 1), value=extra) if extra else values
                continue
            padding = fill[name].to(values.device).expand(values.shape[0], extra)
            parts[name] = torch.cat([values, padding], dim=1)[:, index * size : (index + 1) * size].contiguous()
        return parts

    def count(self, batch: Batch) -> int:
        """Tokens that carry loss."""
        return int((batch["targets"] != IGNORED).sum())

    def prepare(self, model: nn.Module) -> None:
        """Let the output head compute the loss itself, so that the logits never exist in full; balance routers."""
        use_loss_head(model)
        self.balance = RouterBalance(model) if is_asked_for(model.config) else None

    @property
    def auxiliary(self) -> Callable[[], float] | None:
        """The balancing loss of the routers, where the model's config asks for it."""
        return None if self.balance is None else self.balance.take

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> torch.Tensor:
        """Sum of the token losses, and of the auxiliary ones."""
        seen: list[Any] = []
        loss = self._loss(model, batch, gradient_scale, self.options.label_smoothing, seen.append)
        if self.balance is None:
            return loss
        added: torch.Tensor = self.balance.added(model, seen[0].router_logits, batch[REAL], self.count(batch))
        return loss + added

    def _loss(
        self,
        model: nn.Module,
        batch: Batch,
        gradient_scale: float,
        label_smoothing: float,
        see: Callable[[Any], None] | None = None,
    ) -> torch.Tensor:
        # A later pipeline stage has hidden states in the place of tokens.
        inputs = {name: values for name, values in batch.items() if name not in ("targets", REAL)}
        return token_loss(
            model,
            tell_documents(model, inputs),
            batch["targets"],
            label_smoothing=label_smoothing,
            gradient_scale=gradient_scale,
            see=see,
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Token loss (never smoothed) and tokens."""
        return {"loss": float(self._loss(model, batch, 1.0, 0.0)), "targets": self.count(batch)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per token, and its exponential."""
        loss = sums["loss"] / max(1.0, sums["targets"])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def sample(self, model: nn.Module) -> str | None:
        """The greedy answer to task.sample_prompt (through the chat template where there is one). Collective."""
        prompt = self.options.sample_prompt
        if prompt is None:
            return None
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        encoded = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not self.tokenizer.chat_template)
        tokens = encoded["input_ids"].to(next(model.parameters()).device)
        generated = model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=self.options.sample_tokens,
            do_sample=False,
            use_cache=True,
            # Ranks that gather weights from each other must run as many forward passes, also where rounding lets one
            # of them stop earlier. transformers cannot see by itself that they do.
            synced_gpus=dist.is_initialized() and dist.get_world_size() > 1,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
        )
        return str(self.tokenizer.decode(generated[0, tokens.shape[1] :], skip_special_tokens=True)).strip()
