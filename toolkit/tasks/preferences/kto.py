"""KTO: a language model that learns from answers which of them are good.

An answer's reward is measured against a baseline, an estimate of how far the model has moved from the reference as a whole:
the mean of log(policy / reference) over answers to other prompts than their own, not below 0. Those are made inside each
packed sequence, where the answer of every example goes to the next one's prompt: the same tokens in another order, so that
a sequence keeps its length, and the same pairs whatever the world size and the micro-batch. The mean is taken over the
whole global batch, before any of it is trained (`Task.survey`), over all held-out answers in an evaluation. TRL pairs the
examples of a micro-batch and takes the mean of the ranks' micro-batches. An example alone in its sequence gives none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data import documents, tokens
from toolkit.data.example import IGNORED, Array, Example, Row, Sequences
from toolkit.data.forms.chat_template import takes_tools
from toolkit.data.forms.preference_tokens import encode_unpaired
from toolkit.data.forms.preferences import Unpaired, judgement, unpaired_of
from toolkit.data.forms.recognised import Recognised
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError
from toolkit.recipe import KTO
from toolkit.tasks.base import TRAINED, Batch, Loss, Sums
from toolkit.tasks.columns import in_column
from toolkit.tasks.packed_rows import COUNTED, next_tokens, pack_rows, split_rows
from toolkit.tasks.preferences import losses
from toolkit.tasks.preferences.answers import (
    ANSWER_TOKENS,
    REFERENCE,
    AnswersTask,
    answer_tokens,
    answers,
    reference_sums,
)

DESIRABLE = "desirable"
"""Name in an example, bool [1], and in a batch, [E]: whether the answer is good."""
OTHERS = "others/"
"""Before the names of the entries of a batch that are about answers to other prompts than their own."""
SUMS = ("desirable", "desirable_rewards", "undesirable_rewards", "right")
"""Sums over the examples: the good ones, rewards of the good and of the bad ones, those on the right side of the baseline."""


class KTOTask(AnswersTask):
    """Rows hold a prompt, an answer, and whether the answer is good."""

    options: KTO
    surveys = True
    logged = SUMS

    def __init__(self, options: KTO, tokenizer: Any) -> None:
        super().__init__(options, tokenizer)
        self.divergence = 0.0
        """The estimate of the KL divergence from the reference that holds for the global batch in hand."""

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """That all answers are good, or all bad. Rows are read until there is one of both."""
        counts: Counter[bool | None] = Counter()
        for row in in_column(rows, self.options.label_field):
            counts[judgement(row.get(self.options.label_field))] += 1
            if counts[True] and counts[False]:
                return []
        kind, other = ("good", "bad") if counts[True] else ("bad", "good")
        return (
            [
                f"warning: all {counts[kind == 'good']:,} answers are {kind}, and none is {other}, by "
                f"task.label_field={self.options.label_field!r}: KTO tells good from bad, and learns little from one kind alone"
            ]
            if counts[kind == "good"]
            else []
        )

    def encode(self, row: Row) -> list[Example]:
        """One example of one document, the prompt with the answer; and whether that is good."""
        found = self._answer(row)
        example = documents.joined([encode_unpaired(self.tokenizer, found)])
        return [{**example, DESIRABLE: np.array([found.is_good])}]

    def _answer(self, row: Row) -> Unpaired:
        options = self.options
        return unpaired_of(
            row,
            prompt_field=options.prompt_field,
            completion_field=options.completion_field,
            label_field=options.label_field,
            with_tools=takes_tools(self.tokenizer),
        )

    def recognised(self, row: Row) -> Recognised:
        """The form that the row has."""
        return self._answer(row).form

    def columns(self, row: Row) -> Collection[str]:
        """Those of the form that the row has."""
        return self.recognised(row).columns

    def targets(self, example: Example) -> int:
        """1 for an answer, 0 where all of it was cut off."""
        return int(documents.num_trained(example["labels"]) > 0)

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """See `toolkit.data.documents.fit`."""
        return documents.fit(example, capacity, overlong, counts)

    def remarks_on_packs(self, sequences: Sequences) -> list[str]:
        """How many answers tell nothing about the baseline. Raises DataError where none does."""
        total, alone = sum(map(len, sequences)), sum(len(sequence) == 1 for sequence in sequences)
        if alone == total:
            raise DataError(
                f"each of the {total:,} answers has a sequence of its own",
                expected="several answers in a sequence: rewards are measured against answers to other prompts, taken from it",
                do="raise batch.sequence_length",
            )
        note = (
            f"  note: {alone:,} of {total:,} answers are alone in their sequence, and tell nothing about the baseline"
        )
        return [note] if alone else []

    def show(self, example: Example) -> Shown:
        """The text, and whether its answer is good."""
        shown = tokens.show(self.tokenizer, example)
        return Shown(f"{shown.heading}, {'good' if example[DESIRABLE][0] else 'bad'}", shown.parts)

    def stand_in(self, length: int, config: Any) -> Example:
        """An answer, alone in its sequence."""
        found = documents.joined([super().stand_in(length, config)])
        return {**found, DESIRABLE: np.array([True]), REFERENCE: np.zeros(2)}

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """As `packed_rows.pack_rows`, once with every example's own answer and once, under OTHERS, with that of another one."""
        examples = [example for sequence in sequences for example in sequence]
        counted = torch.tensor([bool(self.targets(example)) for example in examples])
        batch = self._packed(sequences, 0)
        has_other = torch.tensor([len(sequence) > 1 for sequence in sequences for _ in sequence])
        others = {**self._packed([_exchanged(sequence) for sequence in sequences], 1), COUNTED: counted & has_other}
        return {
            **batch,
            COUNTED: counted,
            DESIRABLE: torch.tensor([bool(example[DESIRABLE][0]) for example in examples]),
            **self.real_tokens(sequences, batch),
            **{OTHERS + name: values for name, values in others.items()},
        }

    def _packed(self, sequences: list[list[Example]], place: int) -> Batch:
        """Rows of documents; `place` is that of what the reference gives to them in the examples."""
        rows = [
            [next_tokens(example["input_ids"], example["labels"]) for example in sequence] for sequence in sequences
        ]
        examples = [example for sequence in sequences for example in sequence]
        batch = {
            **pack_rows(rows, self.tokenizer.pad_token_id, by_document=True),
            ANSWER_TOKENS: answer_tokens(examples),
        }
        if REFERENCE in examples[0]:
            batch[REFERENCE] = torch.tensor([example[REFERENCE][place] for example in examples], dtype=torch.float64)
        return batch

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        """As `packed_rows.split_rows`, of both; each example counts on one rank."""
        others = {OTHERS + name: values for name, values in split_rows(_others(batch), index, count).items()}
        own = {name: values for name, values in batch.items() if not name.startswith(OTHERS)}
        return split_rows(own, index, count) | others

    def count(self, batch: Batch) -> int:
        """Answers."""
        return int(batch[COUNTED].sum())

    def reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities of each example's own answer and of the other one's to its prompt, [E, 2] fp64."""
        pair = (answers(model, part, self.sequence_group).sums for part in (batch, _others(batch)))
        return torch.stack(list(pair), dim=1)

    def survey(self, model: nn.Module, batch: Batch) -> Batch:
        """Sum of log(policy / reference) over answers to other prompts than their own, and their number."""
        others = _others(batch)
        policy = answers(model, others, self.sequence_group).sums
        ratios = policy - reference_sums(model, others, self.sequence_group)
        counted = others[COUNTED]
        return {"total": (ratios * counted).sum(), "count": counted.sum()}

    def surveyed(self, sums: Mapping[str, float]) -> None:
        """Take over what `survey` has found in the global batch, or in all held-out answers."""
        self.divergence = losses.kl_estimate(sums.get("total", 0.0), sums.get("count", 0.0))

    def _totals(self, model: nn.Module, batch: Batch, seen: list[Any]) -> list[Tensor]:
        """Sums over the answers that count, 0-dim fp64: the loss, and those of SUMS."""
        options = self.options
        policy = answers(model, batch, self.sequence_group, seen).sums
        reward = losses.implicit_reward(policy, reference_sums(model, batch, self.sequence_group), options.beta)
        baseline, desirable = options.beta * self.divergence, batch[DESIRABLE]
        loss = losses.kto(reward, baseline, desirable, options.desirable_weight, options.undesirable_weight)
        rewards = reward.detach()
        right = (rewards > baseline) == desirable
        values = (loss, desirable, rewards * desirable, rewards * ~desirable, right)
        return [(value * batch[COUNTED]).sum().double() for value in values]

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """The losses of the answers, and their rewards."""
        seen: list[Any] = []
        total, *sums = self._totals(model, batch, seen)
        return Loss(total.float(), dict(zip(SUMS, sums, strict=True)), self.balancing_loss(model, batch, seen))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Loss, answers and rewards; needs what a survey of the same answers has found."""
        totals = self._totals(model, batch, [])
        values = torch.stack([*totals, batch[COUNTED].sum().double()]).tolist()
        return dict(zip(("loss", *SUMS, "targets"), values, strict=True))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss of an answer, and what `summary` makes of the rest; not the divergence, which is neither good nor bad."""
        answers_ = max(1.0, sums["targets"])
        rewards = self.summary({name: sums[name] / answers_ for name in SUMS})
        del rewards["kl"]
        return {"loss": sums["loss"] / answers_, **rewards}

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Mean rewards of good and of bad answers, their distance, the share of answers on the right side of the baseline,
        and the divergence behind that. A kind of answers that does not occur has the reward 0."""
        good = means["desirable"]
        chosen = means["desirable_rewards"] / good if good else 0.0
        rejected = means["undesirable_rewards"] / (1.0 - good) if good < 1.0 else 0.0
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": means["right"],
            "kl": self.divergence,
        }


def _exchanged(sequence: list[Example]) -> list[Example]:
    """The prompt of each example with the answer of the one before it, of the first with the last one's."""
    cuts = [_start(example["labels"]) for example in sequence]
    return [
        {
            **example,
            **{
                name: np.concatenate([example[name][:cut], sequence[place - 1][name][cuts[place - 1] :]])
                for name in ("input_ids", "labels")
            },
            "lengths": np.array([cut + len(sequence[place - 1]["labels"]) - cuts[place - 1]], np.int32),
        }
        for place, (example, cut) in enumerate(zip(sequence, cuts, strict=True))
    ]


def _start(labels: Array) -> int:
    """Where the answer begins; at the end for a filler, which has none."""
    trained = np.flatnonzero(labels != IGNORED)
    return int(trained[0]) if len(trained) else len(labels)


def _others(batch: Batch) -> Batch:
    return {name.removeprefix(OTHERS): values for name, values in batch.items() if name.startswith(OTHERS)}
