"""The part of a model that one rank computes with: cut out of a skeleton, filled in by whoever has the weights.

The order matters, and is the same for a run and for a plan of one: kernels are fused on the whole model, stages are cut
before anything wraps their layers, weights come before adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from toolkit.models.adapter_plan import AdapterPlan
from toolkit.models.adapters import add_adapters
from toolkit.models.kernels import Kernels, fuse
from toolkit.models.shards import Shard
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.tensor_plan import TensorPlan, tensor_plan
from toolkit.recipe.mesh import Mesh

Shards = Mapping[str, Shard] | None
"""Of which parameters this rank holds a part only."""

FillIn = Callable[[nn.Module, Shards], None]
"""Gives the parameters of a skeleton, or of its adapters, their values."""


@dataclass(frozen=True)
class Part:
    """Which part of which model."""

    auto_class: Any
    config: PretrainedConfig
    adapters: AdapterPlan | None
    """What is trained in the place of the weights; None: the weights are."""
    mesh: Mesh
    rank: int


def build_part(
    part: Part,
    fill_in: FillIn,
    fill_adapters: FillIn,
    *,
    is_fused: bool = False,
    before_cut: Callable[[nn.Module], None] = lambda _: None,
) -> tuple[nn.Module, Kernels | None]:
    """Build `part`, with fused kernels if `is_fused`. Collective where ranks share matrices.

    `before_cut` sees the layers before anything is cut into parts or wraps their forward pass.
    """
    mesh, rank = part.mesh, part.rank
    model = build_skeleton(part.auto_class, part.config)
    whole = tensor_plan(model, mesh.tensor) if mesh.tensor > 1 else None
    kernels = fuse(model) if is_fused else None
    if mesh.pipeline > 1:
        # Weighed as rank 0 of the tensor group will compute it: every rank of a stage has to cut at the same layers.
        shards = whole.of_rank(0) if whole is not None else None
        cut(model, balance(model, mesh.pipeline, shards)[mesh.coordinate(rank, "pipeline")])
    before_cut(model)
    finish_part(part, model, whole, fill_in, fill_adapters)
    return model, kernels


def finish_part(part: Part, model: nn.Module, whole: TensorPlan | None, fill_in: FillIn, fill_adapters: FillIn) -> None:
    """Cut the matrices of `model`, a stage without weights, as `whole` says of the whole model; fill them in, add adapters."""
    if whole is None:
        fill_in(model, None)
        _add_adapters(part.adapters, model, fill_adapters)
        return
    # They import DeepSpeed, which takes seconds.
    from toolkit.engine.grid import Grid
    from toolkit.engine.tensor import apply_tensor_parallel, mark_parameters
    from toolkit.engine.tensor_adapters import cut_adapters

    plan, group = whole.within(model), Grid(part.mesh, part.rank).tensor
    edges = apply_tensor_parallel(model, plan, group)
    fill_in(model, plan.of_rank(part.mesh.coordinate(part.rank, "tensor")))
    mark_parameters(model, plan, group)
    _add_adapters(part.adapters, model, fill_adapters, lambda: cut_adapters(model, plan, edges))


def _add_adapters(
    adapters: AdapterPlan | None,
    model: nn.Module,
    fill_adapters: FillIn,
    cut_in_parts: Callable[[], Shards] = lambda: None,
) -> None:
    """Freeze the weights of `model` and build adapters beside them, where that is what is trained."""
    if adapters is None:
        return
    add_adapters(model, adapters)
    fill_adapters(model, cut_in_parts())
