"""Adapters of layers that tensor parallelism has cut: A and B are cut as the layer is, and meet at the rank's edge.

Of a layer cut by its outputs A is whole and B is cut by its outputs; of one cut by its inputs A is cut by its inputs,
and what the ranks' parts of it give is summed, `rank` numbers for each token. The other matrix is whole, computed alike
on every rank, and has its complete gradient there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from toolkit.engine.tensor_edges import Edges
from toolkit.errors import ModelError
from toolkit.models.adapter_plan import sides
from toolkit.models.adapters import ADAPTER, adapter_layers
from toolkit.models.shards import Shard
from toolkit.models.tensor_plan import TensorPlan
from toolkit.models.tensor_styles import Boundary, Enter, Leave

_AT_NO_EDGE = Boundary(Enter.AS_IS, Leave.AS_IS)


@dataclass(frozen=True)
class _Cut:
    """How an adapter follows its layer."""

    a: Shard | None
    b: Shard | None
    edges_a: Boundary = _AT_NO_EDGE
    edges_b: Boundary = _AT_NO_EDGE


def cut_adapters(model: nn.Module, plan: TensorPlan, edges: Edges) -> dict[str, Shard]:
    """Make the adapters of `model`, still without values, this rank's part of them; returns what it holds of which.

    Raises ModelError for a layer whose edges lie elsewhere, as those of a mixture's experts do.
    """
    shards = {}
    for name, layer in adapter_layers(model):
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        inputs, outputs = sides(layer.base_layer)
        rank = layer.r[ADAPTER]
        cut = _follow(name, plan, edges, (rank, inputs), (outputs, rank), type(layer.base_layer))
        for module, leaf, shard, boundary in ((a, "lora_A", cut.a, cut.edges_a), (b, "lora_B", cut.b, cut.edges_b)):
            if shard is not None:
                module.weight.shard = shard
                module.weight.tensor_model_parallel = True  # see engine/tensor.py, mark_parameters
                shards[f"{name}.{leaf}.{ADAPTER}.weight"] = shard
            if boundary != _AT_NO_EDGE:
                edges.wrap_adapter(module, boundary)
        dropout = layer.lora_dropout[ADAPTER]
        if isinstance(dropout, nn.Dropout):
            # What is dropped is an entry of the layer's input.
            edges.wrap_dropout(dropout, is_local=cut.a is not None and cut.edges_a.enter is Enter.AS_IS)
    return shards


def _follow(
    name: str, plan: TensorPlan, edges: Edges, a: tuple[int, ...], b: tuple[int, ...], kind: type[nn.Module]
) -> _Cut:
    """`a` and `b` are the whole shapes of the two matrices of the adapter of the layer `name`."""
    boundary = plan.boundaries.get(name, _AT_NO_EDGE)
    shards = plan.shards.get(f"{name}.weight")
    inside = [outer for outer in plan.boundaries if name.startswith(f"{outer}.")]
    if inside:
        raise _elsewhere(name, inside[0])
    if shards is None:
        return _Cut(None, None, edges_b=Boundary(Enter.AS_IS, boundary.leave, boundary.rotary_width))
    weight = shards[edges.rank]
    # torch's Linear keeps [outputs, inputs], transformers' Conv1D [inputs, outputs].
    by_output = (weight.dim == 0) == issubclass(kind, nn.Linear)
    edge = (boundary.enter, boundary.leave)
    if by_output and edge in ((Enter.SUM_GRADIENT, Leave.AS_IS), (Enter.SUM_GRADIENT, Leave.GATHER)):
        return _Cut(None, Shard(b, 0, weight.spans), edges_b=boundary)
    if not by_output and edge in ((Enter.AS_IS, Leave.SUM), (Enter.CUT, Leave.SUM)):
        return _Cut(Shard(a, 1, weight.spans), None, edges_a=boundary)
    raise _elsewhere(name, name.rpartition(".")[0])


def _elsewhere(name: str, outer: str) -> ModelError:
    return ModelError(
        f"the adapter of {name} cannot be cut: what the ranks of a tensor group compute is summed in {outer}",
        expected="layers that tensor parallelism cuts each for itself",
        do="leave it out of tuning.target_modules, or set parallel.tensor=1",
    )
