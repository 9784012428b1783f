"""Killing and stopping ranks at chosen moments: when one of them is about to touch its Nth file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.launch.runs import train, train_in_rank
from toolkit.recipe import Recipe


@dataclass(frozen=True)
class Strike:
    """`signal` for the ranks `victims`, `delay_s` after rank 0 comes to its `operation`th file operation under `below`."""

    signal: int
    victims: Sequence[int]
    operation: int
    delay_s: float = 0.0
    below: str = ""
    """Relative to the run folder: a path, or the beginning of one."""

    def arm(self, output_dir: str, pids: Sequence[int]) -> None:
        """Watch this process for the moment."""
        left, prefix = self.operation, f"{output_dir}/{self.below}"

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            # Python announces opening, renaming, removing, making and listing before it does it.
            nonlocal left
            if left <= 0 or not arguments or not event.startswith(("open", "os.", "shutil.")):
                return
            path = arguments[0]
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(prefix):
                left -= 1
                if left == 0:
                    self._send([pids[victim] for victim in self.victims])

        sys.addaudithook(hook)

    def _send(self, pids: Sequence[int]) -> None:
        if self.delay_s:
            words = " ".join(map(str, pids))
            subprocess.Popen(["sh", "-c", f"sleep {self.delay_s}; kill -{self.signal} {words}"])
        else:
            for pid in pids:
                os.kill(pid, self.signal)


def train_until_killed(rank: int, world_size: int, recipe: Recipe, output_dir: str, cache: str, strike: Strike) -> None:
    """Train under `strike`; what is printed goes to the rank's own output, which outlives it."""
    _arm(rank, output_dir, strike)
    train(recipe, output_dir, cache, "auto")


def train_until_stopped(
    rank: int, world_size: int, recipe: Recipe, output_dir: str, cache: str, strike: Strike
) -> tuple[int, str]:
    """Train under `strike`; (exit code, what was printed)."""
    _arm(rank, output_dir, strike)
    return train_in_rank(rank, world_size, recipe, output_dir, cache)


def _arm(rank: int, output_dir: str, strike: Strike) -> None:
    from toolkit.engine import process

    pids = process.gather_objects(os.getpid())
    if rank == 0:
        strike.arm(output_dir, pids)
