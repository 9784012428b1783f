"""The strategies that are compared, by name: the one table of the verb, the tests and the benchmarks. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import InputError, did_you_mean
from toolkit.recipe import Parallel
from toolkit.recipe.mesh import DEGREES


@dataclass(frozen=True)
class Strategy:
    """One row of the table."""

    world_size: int
    """Ranks that `toolkit parity` runs it on."""
    fields: Mapping[str, Any]
    """The recipe's parallel section."""

    @property
    def parallel(self) -> Parallel:
        """The recipe's parallel section."""
        return Parallel(**self.fields)

    def degree(self, name: str) -> int:
        """Ranks along one of DEGREES."""
        return int(self.fields.get(name, 1))

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that work on the same micro-batch; data parallelism is what remains of a world size."""
        return math.prod(map(self.degree, DEGREES))


STRATEGIES: dict[str, Strategy] = {
    "zero0": Strategy(2, {"zero_stage": 0}),
    "zero1": Strategy(2, {"zero_stage": 1}),
    "zero1_offload": Strategy(2, {"zero_stage": 1, "offload_optimizer": "cpu"}),
    "zero2": Strategy(2, {"zero_stage": 2}),
    "zero2_offload": Strategy(2, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    # The models of a comparison are so small that by default nothing would be partitioned.
    "zero3": Strategy(2, {"zero_stage": 3, "param_persistence_threshold": 100}),
    "zero3_offload": Strategy(2, {"zero_stage": 3, "offload_optimizer": "cpu"}),
    "zero3_offload_param": Strategy(2, {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}),
    "pp2": Strategy(2, {"zero_stage": 1, "pipeline": 2}),
    "pp4": Strategy(4, {"zero_stage": 1, "pipeline": 4}),
    "tp2": Strategy(2, {"zero_stage": 1, "tensor": 2}),
    "sp2": Strategy(2, {"zero_stage": 1, "sequence": 2}),
    "pp2_dp2": Strategy(4, {"zero_stage": 1, "pipeline": 2}),
    "tp2_dp2": Strategy(4, {"zero_stage": 2, "tensor": 2}),
    "sp2_dp2": Strategy(4, {"zero_stage": 2, "sequence": 2}),
    "tp2_zero3": Strategy(4, {"zero_stage": 3, "tensor": 2, "param_persistence_threshold": 100}),
    "sp2_zero3": Strategy(2, {"zero_stage": 3, "sequence": 2, "param_persistence_threshold": 100}),
    "pp2_tp2": Strategy(4, {"zero_stage": 1, "pipeline": 2, "tensor": 2}),
    "pp2_tp2_dp2": Strategy(8, {"zero_stage": 1, "pipeline": 2, "tensor": 2}),
}


DEFAULT = ("zero0", "zero2", "zero2_offload", "zero3", "pp2", "tp2", "sp2_zero3")
"""What is compared when nothing is asked for: one of each kind, in under two minutes."""

ALL = "all"


def choose(names: Sequence[str]) -> dict[str, Strategy]:
    """The strategies called `names`: DEFAULT without any, every one for "all". Raises InputError for an unknown one."""
    if [_plain(name) for name in names] == [ALL]:
        return dict(STRATEGIES)
    known = {_plain(name): name for name in STRATEGIES}
    for name in names:
        if _plain(name) not in known:
            raise InputError(
                f"unknown strategy {name!r}{did_you_mean(name, STRATEGIES)}",
                expected=f"names out of {', '.join(STRATEGIES)}, or {ALL}",
                do="correct --strategies, or leave it out to compare one of each kind",
            )
    wanted = [known[_plain(name)] for name in names] or DEFAULT
    return {name: STRATEGIES[name] for name in dict.fromkeys(wanted)}


def _plain(name: str) -> str:
    return name.strip().replace("-", "_").lower()
