"""What the tensors of an engine hold between two steps, by component: counted, to be compared with what was planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from toolkit.engine.groups import inner_optimizer

WEIGHTS = ("bit16_groups_flat", "fp16_partitioned_groups_flat")
MASTERS = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition")
GRADIENTS = (
    "grad_partitions_flat_buffer",
    "fp32_groups_gradients_flat",
    "averaged_gradients",
    "accumulated_grads_in_cpu",
)
STAGING = (
    "param_buffer_of_bit16_for_cpu_offload_groups",
    "temp_grad_buffer_for_cpu_offload",
    "temp_grad_buffer_for_gpu_offload",
    "_muon_allgather_buffers",
)
BUCKETS = ("ipg_buckets",)
"""Attributes of DeepSpeed's optimizers, by what they hold."""


def held_bytes(engine: Any, model: nn.Module, averages: Iterable[torch.Tensor] = ()) -> dict[str, int]:
    """Bytes of this rank's tensors, wherever they lie, by the components of `toolkit.plan.states`; each storage once.

    `engine` is DeepSpeed's; what lies on NVMe is not in it.
    """
    optimizer, inner = engine.optimizer, inner_optimizer(engine)
    parameters = list(model.parameters())
    groups = [parameter for group in inner.param_groups for parameter in group["params"]]
    masters = [*groups, *_tensors(_of(optimizer, MASTERS))]
    shares = [getattr(parameter, "ds_tensor", None) for parameter in parameters]
    found: dict[str, Any] = {
        "parameters": [parameters, shares, list(model.buffers()), _of(optimizer, WEIGHTS)],
        "master weights": masters,
        "optimizer states": [_values(state) for state in inner.state.values()],
        "gradients": [
            [parameter.grad for parameter in (*parameters, *masters)],
            [getattr(parameter, "grad_accum", None) for parameter in parameters],
            _of(optimizer, GRADIENTS),
        ],
        "average weights": list(averages),
        "staging": _of(optimizer, STAGING),
        "buckets": _of(optimizer, BUCKETS),
    }
    seen: set[int] = set()
    sizes = {}
    for component, tensors in found.items():
        total = 0
        for tensor in _tensors(tensors):
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        sizes[component] = total
    return sizes


def _of(optimizer: Any, names: Iterable[str]) -> list[Any]:
    return [getattr(optimizer, name, None) for name in names]


def _values(state: Any) -> list[Any]:
    """The tensors of one parameter's state; a quantised moment is an object with several."""
    return [value if torch.is_tensor(value) else getattr(value, "__dict__", value) for value in dict(state).values()]


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    """Every tensor in lists, mappings and objects that hold a `buffer`."""
    if isinstance(found, torch.Tensor):
        if not found.is_meta:
            yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from _tensors(value)
    elif hasattr(found, "buffer"):
        yield from _tensors(found.buffer)
