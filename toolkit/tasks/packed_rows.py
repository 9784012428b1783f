"""Documents of tokens, several in a row: as tensors of one micro-batch, and cut along the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from toolkit.data.example import IGNORED, Array
from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor
from toolkit.models.heads import TARGET_ROWS, target_rows
from toolkit.tasks.sequence_parts import part_of

Batch = dict[str, torch.Tensor]

TARGET_DOCUMENTS = "target_documents"
"""Name in a batch: the document of each of its `target_rows`, int64 [M]; documents are numbered row by row, without padding."""

COUNTED = "counted"
"""Name in a batch: whether each example is a target of this rank, bool [E]."""


class Document(NamedTuple):
    """Tokens that see only each other."""

    tokens: Array
    """[T]"""
    targets: Array
    """[T], what each position predicts, -100 for nothing: labels shifted by one, for a model that predicts the next token."""


def next_tokens(tokens: Array, labels: Array) -> Document:
    """A document whose positions predict the label of the position after them."""
    return Document(tokens, np.append(labels[1:], np.array(IGNORED, labels.dtype)))


def pack_rows(rows: Sequence[Sequence[Document]], filler: int | None, *, by_document: bool = False) -> Batch:
    """input_ids, position_ids, targets, each [B, T] with T the longest row; document_lengths [B, N]; target_rows [M] and,
    where they are wanted `by_document`, target_documents [M].

    Positions restart with every document and the lengths say where, which keeps attention inside it (see
    `toolkit.models.attention`); padding, of the token `filler`, is a document of its own.
    """
    shape = (len(rows), max(sum(len(document.tokens) for document in row) for row in rows))
    tokens = np.full(shape, filler or 0, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    owners = np.full(shape, -1, dtype=np.int64)
    lengths = []
    number = 0
    for index, row in enumerate(rows):
        start = 0
        lengths.append([len(document.tokens) for document in row])
        for document in row:
            stop = start + len(document.tokens)
            tokens[index, start:stop] = document.tokens
            positions[index, start:stop] = np.arange(stop - start)
            targets[index, start:stop] = document.targets
            owners[index, start:stop] = number
            start, number = stop, number + 1
        positions[index, start:] = np.arange(shape[1] - start)
        lengths[-1] += [shape[1] - start] if start < shape[1] else []
    found = target_rows(torch.from_numpy(targets))
    documents = {TARGET_DOCUMENTS: torch.from_numpy(owners).flatten()[found]} if by_document else {}
    return {
        "input_ids": torch.from_numpy(tokens),
        "position_ids": torch.from_numpy(positions),
        "targets": torch.from_numpy(targets),
        TARGET_ROWS: found,
        **documents,
        DOCUMENT_LENGTHS: lengths_tensor(lengths),
    }


def split_rows(batch: Batch, index: int, count: int) -> Batch:
    """Part `index` of `count` equal parts of every row that `pack_rows` made; other entries of `batch` stay whole.

    Rows are filled up to a multiple of `count` with a document of padding. document_lengths stay those of the whole rows,
    which is what attention sees; targets stay with the positions that predict them. An example that is COUNTED is so in
    one part.
    """
    rows = ("input_ids", "position_ids", "targets", TARGET_ROWS, DOCUMENT_LENGTHS)
    parts = part_of({name: batch[name] for name in rows}, index, count)
    if TARGET_DOCUMENTS in batch:
        places = batch[TARGET_ROWS] % batch["targets"].shape[1]
        parts[TARGET_DOCUMENTS] = batch[TARGET_DOCUMENTS][places // parts["targets"].shape[1] == index]
    if COUNTED in batch:
        parts[COUNTED] = batch[COUNTED] & (torch.arange(len(batch[COUNTED])) % count == index)
    return {**batch, **parts}


def model_inputs(batch: Batch) -> Batch:
    """What of a batch made by `pack_rows` the model is called with."""
    return {name: batch[name] for name in ("input_ids", "position_ids", DOCUMENT_LENGTHS)}
