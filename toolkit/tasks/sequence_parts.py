"""Cutting a batch of sequences into parts of equal length, one for each rank of sequence parallelism."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolkit.data.example import IGNORED
from toolkit.models.attention import DOCUMENT_LENGTHS
from toolkit.models.heads import TARGET_ROWS, target_rows

NOT_CUT = {DOCUMENT_LENGTHS, TARGET_ROWS, "attention_mask"}
"""Entries of a batch that are not one number per token and part; a mask says no more than the lengths of documents."""

FILLS: Mapping[str, int] = {"targets": IGNORED, "labels": IGNORED}
"""What stands in a batch where sequences are filled up; 0 in all other entries, positions rise from 0."""


def part_of(batch: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """Part `index` of `count` of every sequence in `batch`, whose entries are all [B, T] but those of NOT_CUT.

    Sequences are filled up to a multiple of `count` with a document of padding. document_lengths stay those of the whole
    sequences, which is what attention sees.
    """
    length = batch["input_ids"].shape[1]
    size = -(-length // count)
    extra = size * count - length
    parts = {}
    for name, values in batch.items():
        if name in NOT_CUT:
            continue
        filling = torch.arange(extra) if name == "position_ids" else torch.full((extra,), FILLS.get(name, 0))
        whole = torch.cat([values, filling.to(values).expand(values.shape[0], extra)], dim=1)
        parts[name] = whole[:, index * size : (index + 1) * size].contiguous()
    lengths = batch[DOCUMENT_LENGTHS]
    parts[DOCUMENT_LENGTHS] = nn.functional.pad(lengths, (0, 1), value=extra) if extra else lengths
    if TARGET_ROWS in batch:
        parts[TARGET_ROWS] = target_rows(parts["targets"])
    return parts
