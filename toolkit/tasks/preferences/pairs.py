"""Pairs of a better and a worse answer: rows -> examples of two documents -> batches. What is learned from them is the
affair of `preference` and `reward_model`.

A pair is one target and stays in one sequence. Every rank of a sequence group computes the losses of all pairs of which it
has tokens, and counts its own ones only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolkit.data import documents, tokens
from toolkit.data.example import Array, Example, Row
from toolkit.data.forms.chat_template import takes_tools
from toolkit.data.forms.preference_tokens import encode_preference
from toolkit.data.forms.preferences import Preference, preference_of
from toolkit.data.forms.recognised import Recognised
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.errors import DataError, plural
from toolkit.tasks.base import Batch, Loss, Sums, Task
from toolkit.tasks.packed_rows import COUNTED, Document, model_inputs, pack_rows, split_rows

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


class Compared(NamedTuple):
    """What a model makes of the pairs of a batch; [P] fp64 each."""

    losses: Tensor
    chosen: Tensor
    """Rewards of the better answers."""
    rejected: Tensor


class PairsTask(Task):
    """Rows hold a prompt with a chosen and a rejected answer."""

    can_pack = True
    is_causal = True
    logged = REWARDS
    legend = (
        "each pair: the prompt with the chosen answer, then with the rejected one; answers stand in [[double brackets]]"
    )

    def encode(self, row: Row) -> list[Example]:
        """One example of two documents: the prompt with the chosen answer, and with the rejected one."""
        preference = self._preference(row)
        if preference.is_tie:
            raise DataError(
                f"{self.options.chosen_field} and {self.options.rejected_field} are the same answer",
                expected="two different answers: nothing is learned from equal ones",
                do="remove the row",
            )
        return [documents.joined(encode_preference(self.tokenizer, preference))]

    def _preference(self, row: Row) -> Preference:
        options = self.options
        return preference_of(
            row,
            prompt_field=options.prompt_field,
            chosen_field=options.chosen_field,
            rejected_field=options.rejected_field,
            with_tools=takes_tools(self.tokenizer),
        )

    def recognised(self, row: Row) -> Recognised:
        """The form that the row has."""
        return self._preference(row).form

    def columns(self, row: Row) -> Collection[str]:
        """Those of the form that the row has."""
        return self.recognised(row).columns

    def targets(self, example: Example) -> int:
        """1 for a pair; 0 where so much was cut off that there is nothing to compare."""
        return int(documents.is_complete(example))

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """Both answers have to fit; see `toolkit.data.documents.fit`."""
        return documents.fit(example, capacity, overlong, counts)

    def show(self, example: Example) -> Shown:
        """Both documents, one after the other."""
        chosen, rejected = (
            tokens.show(self.tokenizer, {"input_ids": ids, "labels": labels})
            for ids, labels in documents.apart(example)
        )
        heading = (
            f"{plural(self.size(example), 'token')} in a pair; chosen {chosen.heading}, rejected {rejected.heading}"
        )
        return Shown(heading, [*chosen.parts, ("\n--- rejected ---\n", False), *rejected.parts])

    @abstractmethod
    def document(self, ids: Array, labels: Array) -> Document:
        """A document [T] with the targets that the model is to be asked for."""

    def stand_in(self, length: int, config: Any) -> Example:
        """A pair of answers of half as many tokens each."""
        return documents.joined(
            [super(PairsTask, self).stand_in(size, config) for size in (length // 2, length - length // 2)]
        )

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """As `packed_rows.pack_rows`, both documents of a pair one after the other; and whether each pair counts, [P]."""
        rows = [
            [self.document(*parts) for example in sequence for parts in documents.apart(example)]
            for sequence in sequences
        ]
        examples = [example for sequence in sequences for example in sequence]
        counted = torch.tensor([bool(self.targets(example)) for example in examples])
        return {
            **pack_rows(rows, self.tokenizer.pad_token_id, by_document=True),
            COUNTED: counted,
            **self.beside(examples),
        }

    def beside(self, examples: list[Example]) -> Batch:
        """Further entries of a batch, about its examples or documents: whole on every rank of a sequence group."""
        return {}

    def inputs(self, batch: Batch) -> Batch:
        """Tokens, positions, and where documents end."""
        return model_inputs(batch)

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """As `packed_rows.split_rows`; each pair counts on one rank."""
        return split_rows(batch, index, count)

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return int(batch[COUNTED].sum())

    @abstractmethod
    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Compared, Tensor | float]:
        """What `model` makes of all pairs of `batch`, and what is trained besides (Loss.added)."""

    def _totals(self, batch: Batch, compared: Compared) -> list[Tensor]:
        """Sums over the pairs that count, 0-dim fp64: the loss, and those of REWARDS."""
        margins = compared.chosen - compared.rejected
        values = (compared.losses, compared.chosen, compared.rejected, margins, (margins > 0).double())
        return [(value * batch[COUNTED]).sum() for value in values]

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The losses of the pairs, and their rewards."""
        compared, added = self.weigh(model, batch)
        total, *rewards = self._totals(batch, compared)
        return Loss(total.float(), dict(zip(REWARDS, (reward.detach() for reward in rewards), strict=True)), added)

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss, pairs and rewards."""
        totals = self._totals(batch, self.weigh(model, batch)[0])
        values = torch.stack([*totals, batch[COUNTED].sum().double()]).tolist()
        return dict(zip(("loss", *REWARDS, "targets"), values, strict=True))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss and rewards of a pair; of accuracies the share of pairs whose chosen answer has the higher reward."""
        pairs = max(1.0, sums["targets"])
        return {name: sums.get(name, 0.0) / pairs for name in ("loss", *REWARDS)}
