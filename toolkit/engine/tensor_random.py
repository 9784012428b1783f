"""Random numbers under tensor parallelism: the same for whole activations, each rank's own for its heads and features.

As in Megatron-LM (core/tensor_parallel/random.py) the generator is switched where activations become local and back
where they become whole. The rank's own numbers are derived from the state of the common generator at that place, so
that whatever saves and restores that one (activation checkpointing) repeats them too. Where nothing was drawn locally,
the common numbers go on as if nothing had happened: they are those of the whole model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toolkit.engine import device
from toolkit.engine.seeds import mix


class LocalRandom:
    """Switches this device's default generator between the numbers of a tensor group and those of one of its ranks."""

    draws = True
    """Whether anything is drawn; not on tensors without values."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._seed: int | None = None
        self._common: torch.Tensor | None = None
        self._begin: torch.Tensor | None = None

    def enter(self) -> None:
        """Draw this rank's own numbers from here on. May be called again on the way."""
        generator = _generator()
        if not self.draws or self._is_local(generator):
            return
        self._common = generator.get_state()
        self._seed = mix(_fingerprint(generator), self.rank)
        generator.manual_seed(self._seed)
        self._begin = generator.get_state()

    def leave(self) -> None:
        """Go on with the numbers that all ranks draw alike."""
        generator = _generator()
        if self._is_local(generator):
            has_drawn = not torch.equal(generator.get_state(), self._begin)  # type: ignore[arg-type]
            generator.set_state(self._common)
            if has_drawn:  # or the next local region would draw the same
                _advance(generator)
        self._seed = self._common = self._begin = None

    @contextmanager
    def common(self) -> Iterator[None]:
        """Draw alike on all ranks for a moment, also between `enter` and `leave`."""
        generator = _generator()
        if not self._is_local(generator):
            yield
            return
        local = generator.get_state()
        generator.set_state(self._common)
        try:
            yield
        finally:
            self._common = generator.get_state()
            generator.set_state(local)

    @contextmanager
    def local(self) -> Iterator[None]:
        """Draw this rank's own numbers for a moment, also outside `enter` and `leave`."""
        if self._is_local(_generator()):
            yield
            return
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def _is_local(self, generator: Any) -> bool:
        # Asked of the generator: a recomputed layer may end anywhere, and then checkpointing puts the common state back.
        return self._seed is not None and generator.initial_seed() == self._seed


def _generator() -> Any:
    place = device.current()
    return torch.default_generator if place.type == "cpu" else torch.cuda.default_generators[place.index or 0]


def _fingerprint(generator: Any) -> int:
    """A number that follows from the generator's state; waits for no device."""
    if generator.device.type == "cpu":
        state = generator.get_state().numpy().tobytes()
        return int.from_bytes(hashlib.blake2b(state, digest_size=7).digest(), "little")
    return mix(generator.initial_seed() % 2**64, generator.get_offset())


def _advance(generator: Any) -> None:
    """Move the generator on by one draw."""
    if generator.device.type == "cpu":
        torch.randint(2, (), generator=generator)
    else:
        generator.set_offset(generator.get_offset() + 4)  # in fours, as Philox counts
