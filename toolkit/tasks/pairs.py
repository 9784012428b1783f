"""Pairs of a better and a worse answer: rows -> examples of two documents -> batches. What is learned from them is the
affair of `preference` and `reward_model`.

A pair is one target and stays in one sequence. Every rank of a sequence group computes the losses of all pairs whose
tokens it shares, and counts its own ones only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data import documents, tokens
from toolkit.data.example import IGNORED, Example, Row
from toolkit.data.forms.preference_tokens import encode_preference
from toolkit.data.forms.preferences import Preference, preference_of
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.errors import DataError, plural
from toolkit.tasks.base import Batch, Sums, Task
from toolkit.tasks.packed_rows import Document, next_tokens, pack_rows, split_rows

COUNTED = "counted"
"""Name in a batch: whether each example is a target of this rank, bool [E]."""
ANSWER_TOKENS = "answer_tokens"
"""Name in a batch: the trained tokens of each document, on whichever ranks they are, int64 [D]."""
REFERENCE = "reference"
"""Name in an example, float64 [n], and in a batch, flat: what the model that training began with gives (Task.reference)."""

LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
