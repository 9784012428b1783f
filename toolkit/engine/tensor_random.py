"""Random numbers under tensor parallelism: the same for whole activations, each rank's own for its heads and features.

As in Megatron-LM (core/tensor_parallel/random.py) the generator is switched where activations become local and back
where they become whole. The rank's own numbers are derived from the state of the common generator at that place, so
that whatever saves and restores that one (activation checkpointing) repeats them too.
"""

from __future__ import annotations

from typing import Any

import torch

from toolkit.engine import device
from toolkit.engine.seeds import mix


class LocalRandom:
    """Switches this device's default generator between the numbers of a tensor group and those of one of its ranks."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._seed: int | None = None
        self._common: torch.Tensor | None = None

    def enter(self) -> None:
        """Draw this rank's own numbers from here on. May be called again on the way."""
        generator = _generator()
        if self._is_local(generator):
            return
        seed = mix(_advance(generator), self.rank)
        self._common = generator.get_state()
        generator.manual_seed(seed)
        self._seed = seed

    def leave(self) -> None:
        """Go on with the numbers that all ranks draw alike."""
        generator = _generator()
        if self._is_local(generator):
            generator.set_state(self._common)
        self._seed = self._common = None

    def _is_local(self, generator: Any) -> bool:
        # Asked of the generator: a recomputed layer may end anywhere, and then checkpointing puts the common state back.
        return self._seed is not None and generator.initial_seed() == self._seed


def _generator() -> Any:
    place = device.current()
    return torch.default_generator if place.type == "cpu" else torch.cuda.default_generators[place.index or 0]


def _advance(generator: Any) -> int:
    """A number that follows from the generator's state, which moves on; waits for no device."""
    if generator.device.type == "cpu":
        return int(torch.randint(2**62, (), generator=generator))
    seed, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + 4)  # in fours, as Philox counts
    return mix(seed % 2**64, offset)
