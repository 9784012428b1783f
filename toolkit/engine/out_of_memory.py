"""Whether an error says that there was no memory, on a device or on the host."""

from __future__ import annotations

import torch

WORDS = ("out of memory", "can't allocate memory", "cudaErrorMemoryAllocation", "std::bad_alloc")
"""A host allocation that fails is a RuntimeError (c10/core/impl/alloc_cpu.cpp), pinned memory a CUDA error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's own for a device, or an allocation that the host refused."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in text for word in WORDS)
    )
