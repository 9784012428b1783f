"""How many positions a model has for one sequence."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.attention_choice import model_class
from toolkit.models.quiet import quiet

COUNTING = "create_position_ids_from_input_ids"
"""transformers' function for positions that begin after the padding index (RoBERTa and its kin)."""


def usable_positions(kind: Any, config: PretrainedConfig) -> int | None:
    """Tokens of the longest sequence that the model `kind` makes of `config` has positions for; None: it says no limit."""
    limit = _limit(config)
    return None if limit is None else limit - _first_position(kind, config)


def _limit(config: PretrainedConfig) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_sequence_length(
    kind: Any, config: PretrainedConfig, sequence_length: int, field: str = "batch.sequence_length"
) -> None:
    """Raise ModelError when the model that `kind` makes of `config` has fewer positions than `sequence_length`, which `field` says."""
    limit = _limit(config)
    # Only where it may matter: it takes a model without weights.
    if limit is None or sequence_length <= limit - 16:
        return
    usable = usable_positions(kind, config) or limit
    if usable < sequence_length:
        offset = limit - usable
        table = f" (max_position_embeddings={limit}, of which the first {offset} stand for padding)" if offset else ""
        raise ModelError(
            f"{field}={sequence_length} is longer than the model's {usable} positions{table}",
            expected=f"at most {usable}",
            do=f"set {field}={usable} or less",
        )


def _first_position(kind: Any, config: PretrainedConfig) -> int:
    """The row of the position table that a text's first token gets."""
    if not _counts_from_padding(model_class(kind, config)):
        return 0
    with torch.device("meta"), quiet():
        network: nn.Module = kind.from_config(copy.deepcopy(config))
    return first_position(network)


def first_position(network: nn.Module) -> int:
    """The position of a text's first token, where the model counts by itself."""
    if not _counts_from_padding(type(network)):
        return 0
    limit = network.config.max_position_embeddings  # type: ignore[union-attr]
    tables = [
        part.padding_idx + 1
        for name, part in network.named_modules()
        if "position" in name and isinstance(getattr(part, "padding_idx", None), int) and _rows(part.weight) == limit
    ]
    return max(tables, default=0)


def _rows(table: Any) -> int:
    """Of a weight that may lie on several ranks (DeepSpeed's ds_shape)."""
    return int(getattr(table, "ds_shape", table.shape)[0])


def _counts_from_padding(network: type) -> bool:
    module = sys.modules[network.__module__]
    owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    return any(COUNTING in vars(owner) for owner in owners)
