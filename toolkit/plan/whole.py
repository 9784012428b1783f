"""A whole model without weights, and what every strategy asks of it: built once, and found out once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from toolkit.models.shards import Shard
from toolkit.models.stage_plan import balance, stage_plan
from toolkit.models.stages import Outside, outside
from toolkit.models.tensor_plan import TensorPlan, tensor_plan
from toolkit.plan.depth import Depths, depths_of, thinned
from toolkit.recipe.mesh import Mesh


class Cuts(NamedTuple):
    """How a model is cut into pipeline stages."""

    outside: Outside
    """What lies before and after its layers."""
    layers: list[tuple[int, int]]
    """Of each stage, the first layer and the one after the last."""


class Whole:
    """The model `skeleton`, which nobody changes."""

    def __init__(self, skeleton: nn.Module) -> None:
        self.skeleton = skeleton
        self._tensor_plans: dict[int, TensorPlan] = {}
        self._cuts: dict[tuple[int, int], Cuts] = {}

    @cached_property
    def depths(self) -> Depths:
        """Its layers by kind."""
        return depths_of(self.skeleton)

    def tensor_plan(self, degree: int) -> TensorPlan | None:
        """How `degree` ranks divide its matrices, None for one. Raises ModelError where they cannot."""
        if degree == 1:
            return None
        if degree not in self._tensor_plans:
            self._tensor_plans[degree] = tensor_plan(self.skeleton, degree)
        return self._tensor_plans[degree]

    def shards(self, degree: int) -> Mapping[str, Shard]:
        """What the first of `degree` ranks holds of each cut parameter: where a vocabulary does not divide evenly, most."""
        plan = self.tensor_plan(degree)
        return {} if plan is None else plan.of_rank(0)

    def cuts(self, mesh: Mesh) -> Cuts:
        """Its pipeline stages on `mesh`. Raises ModelError where it has none."""
        key = (mesh.tensor, mesh.pipeline)
        if key not in self._cuts:
            where = outside(self.skeleton, stage_plan(self.skeleton.config))
            self._cuts[key] = Cuts(where, balance(self.skeleton, mesh.pipeline, self.shards(mesh.tensor) or None))
        return self._cuts[key]

    def thinned(self, one_more: Any = None) -> nn.Module:
        """A copy with the layers of the shallowest trace, and one more of the kind `one_more`."""
        return thinned(self.skeleton, self.depths.kept(one_more))
