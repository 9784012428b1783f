"""Causal language modelling: chat and instruction fine-tuning, and pretraining on plain text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from toolkit.data.example import Example, Row
from toolkit.data.forms.chat import encode_completion, encode_conversation, encode_text
from toolkit.data.forms.chat_template import takes_tools
from toolkit.data.forms.conversations import completion_of, in_column, texts_of
from toolkit.data.forms.formats import Format
from toolkit.data.forms.messages import Conversation, ends_unanswered
from toolkit.data.forms.recognised import UNANSWERED, Recognised
from toolkit.data.forms.row_kind import RowKind, row_kind
from toolkit.data.forms.row_remarks import LOOK_AT, Seen, looked_at
from toolkit.data.forms.tool_calls import TOOL_COLUMNS, tool_columns, tools_of
from toolkit.data.reading.described import leaves_out_nulls
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError
from toolkit.models.attention import tell_documents
from toolkit.models.heads import TARGET_ROWS, token_loss
from toolkit.models.router_balance import REAL
from toolkit.tasks.base import TRAINED, Batch, Loss, Sums
from toolkit.tasks.language.language_model import LanguageModelTask
from toolkit.tasks.packed_rows import next_tokens, pack_rows
from toolkit.tasks.sequence_parts import part_of

_NAMES = {"messages": "chat messages", "prompt_completion": "prompt and completion", "text": "plain text"}


class CausalLMTask(LanguageModelTask):
    """Predict each token from those before it inside the same example.

    Rows hold messages, a prompt with a completion, or text (columns named by the fields of the task), or have a format of the
    field that is known by its columns (`toolkit.data.forms.formats`).
    """

    answers = frozenset(("targets", TARGET_ROWS, REAL))

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """How the rows are read where that is not what the recipe says, and what of them reaches no model."""
        seen = Seen()
        for number, row in looked_at(rows):
            with contextlib.suppress(DataError):  # said, with its number, when the row is encoded
                kind = self._kind(row)
                said_there = None if self._is_plain(kind) else self._conversation(row, kind)
                seen.add(number, kind, self._columns(row, kind), row, said_there)
        said = seen.remarks(self.tokenizer, text_field=self.options.text_field, row_name=row_name)
        if leaves_out_nulls(rows, LOOK_AT):
            said.append(
                "note: arguments of tool calls that are null are left out, since a table has a null for every key that only "
                "other rows use; to keep one that is meant, write the arguments as JSON text"
            )
        return said

    def encode(self, row: Row) -> list[Example]:
        """One example: tokens, and labels that are -100 where nothing is learned."""
        kind = self._kind(row)
        if kind == "text":
            return [encode_text(self.tokenizer, row[self.options.text_field], where=self.options.text_field)]
        train_on = self.options.train_on
        if not self.tokenizer.chat_template and (pair := self._pair(row, kind)) is not None:
            prompt, completion, where = pair
            return [encode_completion(self.tokenizer, prompt, completion, train_on=train_on, where=where)]
        return [encode_conversation(self.tokenizer, self._conversation(row, kind), train_on=train_on)]

    def _conversation(self, row: Row, kind: RowKind) -> Conversation:
        """What `row` says, of any form but plain text, with its tools where the chat template shows them."""
        options = self.options
        if isinstance(kind, Format):
            found = kind.read(row)
        elif kind == "messages":
            found = in_column(row[options.messages_field], options.messages_field)
        else:
            found = completion_of(row, options.prompt_field, options.completion_field)
        return replace(found, tools=tools_of(row)) if takes_tools(self.tokenizer) else found

    def _pair(self, row: Row, kind: RowKind) -> tuple[str, str, str] | None:
        """Prompt, completion and their name, where words for a tokenizer without a chat template are known."""
        prompt, completion = self.options.prompt_field, self.options.completion_field
        if isinstance(kind, Format):
            return None if kind.joined is None else (*kind.joined(row), kind.name)
        if (
            kind != "prompt_completion"
            or isinstance(row[prompt], list | tuple)
            or isinstance(row[completion], list | tuple)
        ):
            return None
        return *texts_of(row, prompt, completion), f"{prompt} and {completion}"

    def columns(self, row: Row) -> Collection[str]:
        """Those of the form that the row has, and its tools where there is a chat template to give them to."""
        kind = self._kind(row)
        has_tools = not self._is_plain(kind) and self.tokenizer.chat_template
        return {*self._columns(row, kind), *(TOOL_COLUMNS if has_tools else ())}

    def recognised(self, row: Row) -> Recognised:
        """The format of `row`, one that `encode` takes, and what of it is left out."""
        kind = self._kind(row)
        name, columns = self._name(kind), self._columns(row, kind)
        if self._is_plain(kind):
            return Recognised(name, tuple(columns))
        tools = tool_columns(row) if takes_tools(self.tokenizer) else []
        said = self._conversation(row, kind) if self.tokenizer.chat_template else None
        is_cut = said is not None and ends_unanswered(said, train_on=self.options.train_on)
        return Recognised(name, (*columns, *tools), UNANSWERED if is_cut else "")

    def _columns(self, row: Row, kind: RowKind) -> list[str]:
        """The columns of the form `kind` that `row` has."""
        options = self.options
        if isinstance(kind, Format):
            return kind.columns(row)
        if kind == "prompt_completion":
            return [options.prompt_field, options.completion_field]
        return [options.messages_field if kind == "messages" else options.text_field]

    def _is_plain(self, kind: RowKind) -> bool:
        """Whether `kind` is text that is no conversation."""
        return kind == "text"

    def _name(self, kind: RowKind) -> str:
        """The form `kind` in the words of a reader."""
        return kind.name if isinstance(kind, Format) else _NAMES[kind]

    def _kind(self, row: Row) -> RowKind:
        options = self.options
        return row_kind(
            row,
            messages_field=options.messages_field,
            prompt_field=options.prompt_field,
            completion_field=options.completion_field,
            text_field=options.text_field,
        )

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids, position_ids, targets, each [B, T] with T the longest sequence; document_lengths [B, N]; target_rows [M].

        Positions restart with every example and the lengths say where, which keeps attention inside it (see
        `toolkit.models.attention`); padding is an example of its own. `targets` are shifted inside each example.
        """
        rows = [
            [next_tokens(example["input_ids"], example["labels"]) for example in sequence] for sequence in sequences
        ]
        batch = pack_rows(rows, self.tokenizer.pad_token_id)
        return batch | self.real_tokens(sequences, batch)

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """Equal parts, see `toolkit.tasks.sequence_parts`."""
        return part_of(batch, index, count)

    def count(self, batch: Batch) -> int:
        """Tokens that carry loss."""
        return len(batch[TARGET_ROWS])

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The token losses, and the balancing loss of the routers."""
        seen: list[Any] = []
        loss = self._loss(model, batch, gradient_scale, self.options.label_smoothing, seen.append)
        if self.balance is None:
            return Loss(loss)
        added = self.balance.added(model, seen[0].router_logits, batch[REAL], self.count(batch))
        return Loss(loss, added=added)

    def _loss(
        self,
        model: nn.Module,
        batch: Batch,
        gradient_scale: float,
        label_smoothing: float,
        see: Callable[[Any], None] | None = None,
    ) -> torch.Tensor:
        return token_loss(
            model,
            self._told(model, batch),
            batch["targets"],
            label_smoothing=label_smoothing,
            gradient_scale=gradient_scale,
            rows=batch[TARGET_ROWS],
            see=see,
        )

    def _told(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """What the model is called with."""
        return tell_documents(model, self.inputs(batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Token loss (never smoothed) and tokens."""
        return {"loss": float(self._loss(model, batch, 1.0, 0.0)), "targets": self.count(batch)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per token, and its exponential."""
        loss = sums["loss"] / max(1.0, sums["targets"])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
