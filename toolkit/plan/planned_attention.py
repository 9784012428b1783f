"""Attention that stands for flash kernels on tensors without values: it keeps what they keep, and notes sliding windows.

Its operator computes all pairs of tokens; how many of them a kernel would leave out is noted beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from toolkit.models.attention import DOCUMENT_LENGTHS, looks_back_only, ungrouped
from toolkit.models.flops import Pairs
from toolkit.models.varlen import KERNEL
from toolkit.plan.work import Work

PLANNED = "toolkit_planned"
"""Name, among transformers' attention functions, of the one that stands for flash kernels on fake tensors."""


@dataclass
class Windows:
    """What of attention lies in sliding windows, in any unit."""

    total: float = 0.0
    """All attention, windows left out of account."""
    local: float = 0.0
    """The same of layers with windows."""
    near: float = 0.0
    """Of these, what lies within them."""

    def note(self, query: Tensor, is_causal: bool, window: int | None) -> None:
        """One layer's attention, of query [B, H, T, D], has been computed."""
        length = np.array([query.shape[2]])
        share = Pairs(is_causal, window).count(length) / Pairs(is_causal).count(length)
        size = float(query.numel() * query.shape[2])
        self.total += size
        if share < 1.0:
            self.local += size
            self.near += size * share

    def applied_to(self, work: Work) -> Work:
        """`work` with that apart: of all attention, backward passes included, the same parts."""
        if not self.local:
            return work
        local, near = (work.attention * part / self.total for part in (self.local, self.near))
        return work._replace(attention=work.attention - local, local=local, near=near)


_noted: ContextVar[Windows | None] = ContextVar("_noted", default=None)


@contextmanager
def windows_noted() -> Iterator[Windows]:
    """Note the windows of what `planned_attention` is asked for inside."""
    windows = Windows()
    token = _noted.set(windows)
    try:
        yield windows
    finally:
        _noted.reset(token)


def planned_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Any:
    """What a flash kernel keeps: query, key, value, output and one number per row, and no mask."""
    window = options.pop("sliding_window", None)
    for name in (DOCUMENT_LENGTHS, "position_ids"):
        options.pop(name, None)
    windows = _noted.get()
    if windows is not None:
        windows.note(query, looks_back_only(module, options.get("is_causal")), window)
    if KERNEL is not None and KERNEL.repeats_heads:
        module, key, value = ungrouped(module, query, key, value)
    return sdpa_attention_forward(module, query, key, value, None, **options)


AttentionInterface.register(PLANNED, planned_attention)
