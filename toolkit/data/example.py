"""What one training example is, and what this package has to be told about its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from toolkit.data.packing import Counts

IGNORED = -100
"""A label that carries no loss."""

Ints: TypeAlias = NDArray[np.int32]
Array: TypeAlias = NDArray[Any]
Example: TypeAlias = dict[str, Array]
"""Named arrays of any type with at least one dimension; the first one's length may differ between examples."""
Row: TypeAlias = Mapping[str, Any]
Encode: TypeAlias = Callable[[Row], list[Example]]
Collate: TypeAlias = Callable[[list[list[Example]]], dict[str, torch.Tensor]]
Sequences: TypeAlias = Sequence[Sequence[int]]


def as_bytes(value: str) -> NDArray[np.uint8]:
    """`value` as an array, which an example can hold."""
    return np.frombuffer(value.encode("utf-8", "surrogatepass"), np.uint8)


def as_text(array: NDArray[np.uint8]) -> str:
    """The text that `as_bytes` has made an array of."""
    return array.tobytes().decode("utf-8", "surrogatepass")


class Kind(Protocol):
    """What a task says about its examples; this package knows no names of arrays. `toolkit.data.tokens` is the usual one."""

    transforms: ClassVar[bool]
    """Whether `transform` does anything."""
    sourced: ClassVar[frozenset[str]]
    """Arrays that are not kept with the prepared examples, but read again when an example is wanted; see `Encoder.source`."""

    provenance: ClassVar[frozenset[str]]
    """Of those, the arrays that say where an example comes from, and not what it is."""

    def size(self, example: Example) -> int:
        """What packing and length limits count: tokens, frames, pixels."""
        ...

    def targets(self, example: Example) -> int:
        """What of `example` carries loss: tokens, or labels."""
        ...

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """`example` as the examples of at most `capacity` that `overlong` (data.overlong) makes of it; `counts` what it did."""
        ...

    def ignored(self, example: Example) -> Example:
        """The same example without a target: it takes part in a forward pass and adds nothing to the loss."""
        ...

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """What is costly to store, or drawn anew each time, made when `example` is collated.

        `random` depends on the seed, the pass over the data and the example alone. Called from several threads at once.
        """
        ...

    @property
    def mixes(self) -> bool:
        """Whether `mix` does anything."""
        ...

    def mix(self, example: Example, other: Example, random: np.random.Generator) -> Example:
        """`example` of a training step with something of `other`, its neighbour in the global batch."""
        ...
