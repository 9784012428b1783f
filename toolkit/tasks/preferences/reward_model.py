"""Reward models: a number for every answer, learned from pairs which of two answers is better."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from toolkit.data.example import IGNORED, Array, Example, Row
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.models.attention import tell_documents
from toolkit.models.heads import TARGET_ROWS
from toolkit.models.log_probabilities import segment_sum
from toolkit.recipe import RewardModel
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch
from toolkit.tasks.labels.classes import head_of
from toolkit.tasks.packed_rows import COUNTED, TARGET_DOCUMENTS, Document
from toolkit.tasks.preferences import losses
from toolkit.tasks.preferences.pairs import Compared, PairsTask

MARGIN = "margin"
"""Name in an example, float32 [1], and in a batch, [P]: by how much the chosen answer's reward is to be higher."""
HEAD = "score"
"""What transformers' decoders call the layer that classifies their last token (GenericForSequenceClassification)."""


class RewardModelTask(PairsTask):
    """The reward is read from the last token that is no padding, as transformers' classifiers do; the export is one of them."""

    auto_class = AutoModelForSequenceClassification
    reads_padding = True
    options: RewardModel

    def __init__(self, options: RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        self._has_head = False
        if tokenizer.pad_token_id is None:
            raise RecipeError(
                f"the tokenizer at {tokenizer.name_or_path!r} has no padding token",
                expected="one: the exported classifier finds the last token of a text by it",
                do="use a checkpoint whose tokenizer names a pad_token, or add it to tokenizer_config.json",
            )

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """See whether the checkpoint is a reward model, whose head is kept."""
        head = head_of(checkpoint)
        self._has_head = head is not None and head.size == 1

    @property
    def new_head(self) -> bool:
        """Unless the checkpoint's own head has one output."""
        return not self._has_head

    def config_overrides(self) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}}

    def encode(self, row: Row) -> list[Example]:
        """As of all pairs, with the margin where the recipe names its column."""
        [example] = super().encode(row)
        column = self.options.margin_field
        if column is None:
            return [example]
        margin = row.get(column)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not np.isfinite(margin):
            raise DataError(
                f"task.margin_field={column!r} " + (f"is {margin!r:.60}" if column in row else "is not there"),
                expected="a finite number: by how much the chosen answer's reward is to be higher",
                do="write a number, or set task.margin_field to the column that holds it",
            )
        return [{**example, MARGIN: np.array([margin], np.float32)}]

    def columns(self, row: Row) -> Collection[str]:
        """Those of the form, and the margin."""
        margin = self.options.margin_field
        return {*super().columns(row), *([] if margin is None else [margin])}

    def document(self, ids: Array, labels: Array) -> Document:
        """The last token that is no padding is asked for the reward."""
        targets = np.full(len(ids), IGNORED, np.int64)
        real = np.flatnonzero(ids != self.tokenizer.pad_token_id)
        targets[real[-1] if len(real) else -1] = 0
        return Document(ids, targets)

    def stand_in(self, length: int, config: Any) -> Example:
        """A pair, by any margin."""
        return {**super().stand_in(length, config), MARGIN: np.zeros(1, np.float32)}

    def beside(self, examples: list[Example]) -> Batch:
        """The margins, where there are any."""
        if not examples or MARGIN not in examples[0]:
            return {}
        return {MARGIN: torch.tensor([float(example[MARGIN][0]) for example in examples], dtype=torch.float64)}

    def prepare(self, model: nn.Module) -> None:
        """Raise ModelError for a model whose classifier does not read one token, through a layer of its own."""
        if not isinstance(getattr(model, HEAD, None), nn.Linear) or not hasattr(model, "base_model"):
            raise ModelError(
                f"task.name='reward_model': {type(model).__name__} has no layer `{HEAD}` that reads the last token",
                expected="a decoder that transformers can turn into a sequence classifier, such as Llama, Qwen or GPT-2",
                do="choose another model",
            )

    def rewards(self, model: nn.Module, batch: Batch) -> Tensor:
        """Rewards [D] fp64 of all documents of `batch`, whose tokens the ranks of a sequence group share."""
        network: Any = model
        hidden = network.base_model(**tell_documents(model, self.inputs(batch)), use_cache=False).last_hidden_state
        scores = getattr(network, HEAD)(hidden.flatten(0, 1)[batch[TARGET_ROWS]]).squeeze(-1).float()
        return segment_sum(scores, batch[TARGET_DOCUMENTS], 2 * len(batch[COUNTED]), self.sequence_group)

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Compared, Tensor | float]:
        """Losses and rewards of the pairs."""
        chosen, rejected = self.rewards(model, batch).view(-1, 2).unbind(1)
        loss = losses.bradley_terry(chosen, rejected, batch.get(MARGIN, 0.0), self.options.centering)
        return Compared(loss, chosen, rejected), 0.0
