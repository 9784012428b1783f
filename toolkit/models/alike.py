"""Loops whose rounds are alike: in a trace on tensors without values two of them, the first and the last, stand for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass
class _Trace:
    """A trace that goes on."""

    device: str
    """The kind that its tensors stand for, wherever they lie."""
    times: int = 1
    """Operations that each one stands for."""


_traces: list[_Trace] = []
"""Innermost last."""


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Choose sizes for a `device` of this kind for a while, and shorten loops: tensors have no values."""
    _traces.append(_Trace(device))
    try:
        yield
    finally:
        _traces.pop()


def kind_of(tensor: Tensor) -> str:
    """The kind of device that `tensor` lies on, or stands for."""
    return _traces[-1].device if _traces else tensor.device.type


def times() -> int:
    """Operations that each one of this moment stands for."""
    return _traces[-1].times if _traces else 1


def alike(rounds: Iterable[T]) -> Iterator[T]:
    """`rounds`, of which all but the last have the same sizes, and none keeps a tensor that it made.

    A long vocabulary has its softmax taken in hundreds of blocks, and each operation without values costs as much time as
    a small one with them.
    """
    if not _traces:
        yield from rounds
        return
    trace, every = _traces[-1], list(rounds)
    outside = trace.times
    if len(every) > 1:
        trace.times = outside * (len(every) - 1)
        yield every[0]
        trace.times = outside
    yield from every[-1:]
