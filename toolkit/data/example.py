"""What one training example is, and the two functions a task gives to this package.

Causal LM: "input_ids" [T] and "labels" [T], where -100 marks a token without loss and labels are not shifted.
Classification: "input_ids" [T] and "labels" [1]. Further 1-D columns are carried along. "closing" [1] says how many
tokens at the end stay when the example is cut to a length: those that a tokenizer puts after every text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

IGNORED = -100

Ints: TypeAlias = NDArray[np.int32]
Example: TypeAlias = dict[str, Ints]
Row: TypeAlias = Mapping[str, Any]
Encode: TypeAlias = Callable[[Row], list[Example]]
Collate: TypeAlias = Callable[[list[list[Example]]], dict[str, torch.Tensor]]
Sequences: TypeAlias = Sequence[Sequence[int]]


def num_targets(example: Example) -> int:
    """Label positions of `example` that carry loss.

    A causal LM predicts label t from the tokens before t, so the first label of a token-level example never counts.
    """
    labels = example["labels"]
    if len(labels) == len(example["input_ids"]) and len(labels) > 1:
        labels = labels[1:]
    return int(np.count_nonzero(labels != IGNORED))


def masked(example: Example) -> Example:
    """The same example with every label ignored: it takes part in a forward pass and adds nothing to the loss."""
    return {**example, "labels": np.full_like(example["labels"], IGNORED)}
