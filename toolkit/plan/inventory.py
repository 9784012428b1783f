"""The parameters that one rank holds before ZeRO shares them out: counted on a skeleton without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from toolkit.models.adapter_plan import AdapterPlan, sides
from toolkit.models.output_layer import embedding_parameters
from toolkit.models.shards import Shard
from toolkit.plan.whole import Cuts, Whole
from toolkit.recipe.mesh import Mesh


@dataclass(frozen=True)
class Parameter:
    """What one rank holds of one parameter."""

    name: str
    numel: int
    """Of this rank's part, before ZeRO."""
    is_matrix: bool
    """Two dimensions or more; vectors have a parameter group of their own."""
    is_trained: bool
    is_embedding: bool = False
    """In an embedding or the head, which Muon leaves to Adam."""


@dataclass(frozen=True)
class Inventory:
    """All parameters of one rank, and its buffers."""

    parameters: tuple[Parameter, ...]
    buffers: int
    """Numbers in buffers (running statistics, tables), whole on every rank."""

    def groups(self) -> list[list[Parameter]]:
        """The parameter groups that are trained: matrices, then vectors (`toolkit.engine.groups`); empty ones are left out."""
        trained = [parameter for parameter in self.parameters if parameter.is_trained]
        split = ([item for item in trained if item.is_matrix], [item for item in trained if not item.is_matrix])
        return [group for group in split if group]

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel for parameter in self.parameters if parameter.is_trained)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def largest(self) -> int:
        """Numbers of the largest parameter that is trained."""
        return max((parameter.numel for parameter in self.parameters if parameter.is_trained), default=0)


def take_inventory(
    whole: Whole, skeleton: nn.Module, mesh: Mesh, stage: int = 0, *, adapters: AdapterPlan | None = None
) -> Inventory:
    """What a rank of pipeline stage `stage` holds of `skeleton`, which is `whole` with what is not trained frozen.

    The first rank of its tensor group (`Whole.shards`). Raises ModelError where the model cannot be divided so.
    """
    shards = whole.shards(mesh.tensor)
    here = _of_stage(skeleton, whole.cuts(mesh), stage) if mesh.pipeline > 1 else lambda _: True
    embeddings = embedding_parameters(skeleton)
    found = []
    for name, parameter in skeleton.named_parameters():
        if not here(name):
            continue
        share = shards[name].share if name in shards else 1.0
        is_trained = name in adapters.whole if adapters is not None else parameter.requires_grad
        numel = round(parameter.numel() * share)
        found.append(Parameter(name, numel, parameter.dim() >= 2, is_trained, id(parameter) in embeddings))
    if adapters is not None:
        found += [parameter for parameter in _adapters(skeleton, adapters, shards) if here(parameter.name)]
    buffers = sum(buffer.numel() for name, buffer in skeleton.named_buffers() if here(name))
    return Inventory(tuple(found), buffers)


def _of_stage(skeleton: nn.Module, cuts: Cuts, stage: int) -> Callable[[str], bool]:
    """Whether a pipeline stage has the parameter of a name."""
    where, last = cuts.outside, len(cuts.layers) - 1
    first, after = cuts.layers[stage]
    ties: Mapping[str, str] = getattr(skeleton, "all_tied_weights_keys", None) or {}
    shared = {source for target, source in ties.items() if target.startswith(tuple(f"{name}." for name in where.last))}

    def has(name: str) -> bool:
        if name.startswith(f"{where.layers}."):
            return first <= int(name[len(where.layers) + 1 :].split(".")[0]) < after
        if name.startswith(tuple(f"{module}." for module in where.first)):
            return stage == 0 or (stage == last and name in shared)
        return stage == last

    return has


def _adapters(skeleton: nn.Module, plan: AdapterPlan, shards: Mapping[str, Shard]) -> Iterator[Parameter]:
    """A [rank, inputs] and B [outputs, rank] of each layer: the one along which the layer is cut is cut as well."""
    for name in plan.targets:
        layer: Any = skeleton.get_submodule(name)
        inputs, outputs = sides(layer)
        shard = shards.get(f"{name}.weight")
        if shard is not None:
            cuts_outputs = shard.dim == (1 if plan.transposed else 0)
            inputs = inputs if cuts_outputs else round(inputs * shard.share)
            outputs = round(outputs * shard.share) if cuts_outputs else outputs
        rank = plan.tuning.rank
        yield Parameter(f"{name}.lora_A", rank * inputs, True, True)
        yield Parameter(f"{name}.lora_B", rank * outputs, True, True)
        if plan.tuning.use_dora:
            yield Parameter(f"{name}.lora_magnitude_vector", outputs, False, True)
