"""The master weights and optimizer states that this rank owns, cut along parameter names: what a checkpoint stores, whatever wrote it.

Every ZeRO stage keeps, on each rank, some range of each flattened parameter: its master weight and the optimizer's
states for it, in fp32 or in what precision.master_dtype and precision.state_dtype say. Named by (parameter, start, length) these ranges mean the same under every stage and world size, so a
checkpoint made of them can be read back into any other layout. All functions here are local: no collectives, except
`publish`, which rebuilds the 16-bit weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from toolkit.engine.adam8bit import Adam8bit, Moment, new_moment, read_moment, write_moment
from toolkit.engine.groups import inner_optimizer
from toolkit.models.shards import Shard, shard_of

WEIGHT = "fp32"
"""Name of the master weight among the states, which a checkpoint holds in fp32 whatever it was kept in."""

AVERAGE = "ema"
"""Name of the exponential moving average of the weight among the states."""

BUFFER = "buffer"
"""Name of the values of a buffer that training moves, such as the running mean of a batch norm."""

CANONICAL_STATE = {"DeepSpeedCPUAdagrad": {"exp_avg_sq": "sum"}}
"""Where a kernel's name for a state differs from torch's."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of the flattened parameter `name`, as views of this rank's live state."""

    name: str
    start: int
    length: int
    tensors: dict[str, torch.Tensor]
    """1-D, `length` elements each: WEIGHT and the optimizer's states."""
    scalars: dict[str, float]
    """States that are one number, such as Adam's step."""
    shard: Shard | None = None
    """Where tensor parallelism cut the parameter: the range is one of this part."""


Read = Callable[[str, str, int, int, Shard | None], torch.Tensor | None]
"""(parameter name, state, start, length, shard) -> the stored values, or None where the checkpoint has no such state."""

ReadScalars = Callable[[str], dict[str, float]]


@dataclass(frozen=True)
class _Flat:
    """One flat fp32 tensor of the optimizer, and where each parameter's range lies in it."""

    tensor: torch.Tensor
    spans: list[tuple[str, int, int, int]]
    """(parameter name, start in the parameter, start in `tensor`, length)."""
    owner: Any
    """The torch.optim.Optimizer that holds its states."""
    whole_momentum: dict[str, tuple[int, int]] | None = None
    """Muon at stages 1 and 2 keeps the momentum of whole matrices: parameter name -> (start in the buffer, length)."""


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Whole shape of every trainable parameter, also where ZeRO-3 or tensor parallelism has cut it."""
    return {
        name: list(shard.shape if (shard := shard_of(parameter)) else getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def master_weights(engine: Any) -> Iterator[torch.Tensor]:
    """The flat master weights that this rank owns, or, at stage 0 in fp32, all of them. Views: use each before the next one
    is asked for."""
    for flat in _flats(engine):
        yield flat.tensor.detach().view(-1)


def fragments(engine: Any, averages: Sequence[torch.Tensor] = ()) -> Iterator[Fragment]:
    """This rank's fragments; `averages` are further states, one for each of `master_weights`.

    Tensors are views: copy or write them out before the next one is asked for.
    """
    optimizer = inner_optimizer(engine)
    names = CANONICAL_STATE.get(type(optimizer).__name__, {})
    shards = _shards(engine)
    for index, flat in enumerate(_flats(engine)):
        state = flat.owner.state.get(flat.tensor, {})
        whole = {
            names.get(key, key): value.view(-1)
            for key, value in state.items()
            if torch.is_tensor(value) and value.numel() == flat.tensor.numel() and value.dim() > 0
        }
        quantised = {key: value for key, value in state.items() if isinstance(value, Moment)}
        scalars = {key: float(value) for key, value in state.items() if key not in whole and _is_scalar(value)}
        whole[WEIGHT] = flat.tensor.detach().view(-1)
        if averages:
            whole[AVERAGE] = averages[index]
        momentum = state.get("momentum_buffer") if flat.whole_momentum else None
        if momentum is not None:
            whole.pop("momentum_buffer", None)
        for name, start, offset, length in flat.spans:
            parts = {key: value.narrow(0, offset, length) for key, value in whole.items()}
            # Copies, one parameter's at a time: a whole slice in fp32 may not fit.
            parts |= {key: read_moment(value, offset, length) for key, value in quantised.items()}
            if momentum is not None and flat.whole_momentum is not None:
                parts["momentum_buffer"] = momentum.narrow(0, flat.whole_momentum[name][0] + start, length)
            yield Fragment(name, start, length, parts, scalars, shards.get(name))


def restore(engine: Any, read: Read, read_scalars: ReadScalars, averages: Sequence[torch.Tensor] = ()) -> None:
    """Fill this rank's weights and optimizer states from a checkpoint, then rebuild the 16-bit weights everywhere.

    Each is rounded to the format that this run keeps it in, whatever it was written from. `averages` are filled, too, with
    the weights where the checkpoint has no average of them.
    """
    optimizer = inner_optimizer(engine)
    names = {ours: theirs for theirs, ours in CANONICAL_STATE.get(type(optimizer).__name__, {}).items()}
    shards = _shards(engine)
    with torch.no_grad():
        for index, flat in enumerate(_flats(engine)):
            states: dict[str, Any] = {}
            for name, start, offset, length in flat.spans:
                shard = shards.get(name)
                weights = read(name, WEIGHT, start, length, shard)
                _fill(flat.tensor.detach().view(-1), offset, length, weights)
                if averages:
                    average = read(name, AVERAGE, start, length, shard)
                    _fill(averages[index], offset, length, weights if average is None else average)
            for key in STATE_NAMES:
                moment = _restored(flat, key, _stored(flat, key, read, shards))
                if moment is not None:
                    states[key] = moment
            if flat.whole_momentum and "momentum_buffer" in states:
                states["momentum_buffer"] = _read_whole(flat.whole_momentum, read, flat.tensor)
            scalars = read_scalars(flat.spans[0][0]) if flat.spans else {}
            if states or scalars:
                fresh = {names.get(key, key): value for key, value in states.items()}
                flat.owner.state[flat.tensor] = fresh | _native_scalars(flat.owner, scalars, flat.tensor.device)
    publish(engine)


def _stored(flat: _Flat, key: str, read: Read, shards: dict[str, Shard]) -> Iterator[tuple[int, torch.Tensor]]:
    """(start in `flat`, numbers) of the state `key`, as far as a checkpoint has it."""
    for name, start, offset, length in sorted(flat.spans, key=lambda span: span[2]):
        values = read(name, key, start, length, shards.get(name))
        if values is not None:
            yield offset, values


def _restored(flat: _Flat, key: str, parts: Iterator[tuple[int, torch.Tensor]]) -> Any | None:
    """The state `key` of `flat` as its optimizer keeps it, filled from `parts`; None where there are none."""
    first = next(parts, None)
    if first is None:
        return None
    parts = chain([first], parts)
    if isinstance(flat.owner, Adam8bit):
        moment = new_moment(flat.tensor, key)
        write_moment(moment, parts)
        return moment
    state = _new_state(flat.owner, flat.tensor)
    for offset, values in parts:
        _fill(state.view(-1), offset, values.numel(), values)
    return state


def _new_state(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> torch.Tensor:
    """Zeros for a state of `weight`, in the format that `optimizer` keeps it in."""
    # DeepSpeedCPUAdam alone can keep fp32 states of a bf16 weight (ops/adam/cpu_adam.py).
    dtype = torch.float32 if getattr(optimizer, "fp32_optimizer_states", False) else weight.dtype
    return torch.zeros_like(weight.detach(), dtype=dtype)


STATE_NAMES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum")
"""Every tensor state of the optimizers that a recipe can name."""


def _read_whole(places: dict[str, tuple[int, int]], read: Read, like: torch.Tensor) -> torch.Tensor:
    buffer = torch.zeros(sum(length for _, length in places.values()), dtype=torch.float32, device=like.device)
    for name, (offset, length) in places.items():
        _fill(buffer, offset, length, read(name, "momentum_buffer", 0, length, None))
    return buffer


def _fill(buffer: torch.Tensor, offset: int, length: int, values: torch.Tensor | None) -> None:
    if values is not None:
        buffer.narrow(0, offset, length).copy_(values)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (torch.is_tensor(value) and value.numel() == 1)


def _native_scalars(
    optimizer: torch.optim.Optimizer, scalars: dict[str, float], device: torch.device
) -> dict[str, Any]:
    """Scalars as the optimizer keeps them beside a weight on `device`.

    DeepSpeed's kernels and Adam8bit count in Python integers, torch's classes in fp32 tensors: on the CPU, but beside the weight
    where the kernel reads the step itself (torch/optim/optimizer.py, _process_value_according_to_param_policy).
    """
    if type(optimizer).__module__.startswith("deepspeed.ops") or isinstance(optimizer, Adam8bit):
        return {key: int(value) for key, value in scalars.items()}
    is_read_by_kernel = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    place = device if is_read_by_kernel else torch.device("cpu")
    return {key: torch.tensor(value, dtype=torch.float32, device=place) for key, value in scalars.items()}


def _flats(engine: Any) -> Iterator[_Flat]:
    outer = engine.optimizer
    if hasattr(outer, "fp32_partitioned_groups_flat"):
        yield from _stage3(engine, outer)
    elif hasattr(outer, "bit16_groups"):
        # With offloaded states Muon's momentum is partitioned like the weights.
        whole = None if outer.cpu_offload else outer.params_in_partition
        yield from _stage12(engine, outer.bit16_groups, outer.single_partition_of_fp32_groups, whole)
    elif hasattr(outer, "fp32_groups_flat_partition"):
        yield from _stage12(engine, outer.bf16_groups, outer.fp32_groups_flat_partition)
    else:
        yield from _stage0(engine)


def _names(engine: Any) -> dict[int, str]:
    return {id(parameter): name for name, parameter in engine.module.named_parameters()}


def _shards(engine: Any) -> dict[str, Shard]:
    found = ((name, shard_of(parameter)) for name, parameter in engine.module.named_parameters())
    return {name: shard for name, shard in found if shard is not None}


def _stage0(engine: Any) -> Iterator[_Flat]:
    # Every rank holds everything: each writes its share, and each reads all of it.
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield _Flat(parameter, [(name, 0, 0, parameter.numel())], inner_optimizer(engine))


def owned(fragment: Fragment, engine: Any, rank: int, world_size: int) -> Fragment | None:
    """The part of `fragment` that this rank writes: all of it, except at stage 0, where every rank holds everything."""
    if hasattr(engine.optimizer, "optimizer") or world_size == 1:
        return fragment
    share = -(-fragment.length // world_size)
    start = min(rank * share, fragment.length)
    length = min(share, fragment.length - start)
    if length == 0:
        return None
    parts = {key: value.narrow(0, start, length) for key, value in fragment.tensors.items()}
    return Fragment(fragment.name, fragment.start + start, length, parts, fragment.scalars, fragment.shard)


def _stage12(
    engine: Any, groups: list[list[nn.Parameter]], flats: list[torch.Tensor], in_partition: Any = None
) -> Iterator[_Flat]:
    names = _names(engine)
    for index, (group, flat) in enumerate(zip(groups, flats, strict=True)):
        spans = []
        for parameter in group:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                spans.append((names[id(parameter)], here.start, there.start, here.numel))
        whole: dict[str, tuple[int, int]] | None = None
        if in_partition is not None and getattr(group[0], "use_muon", False):
            whole, offset = {}, 0
            for parameter in in_partition[index]:
                whole[names[id(parameter)]] = (offset, parameter.numel())
                offset += parameter.numel()
        yield _Flat(flat, spans, inner_optimizer(engine), whole)


def _stage3(engine: Any, outer: Any) -> Iterator[_Flat]:
    names = _names(engine)
    for index, group in enumerate(outer.fp16_groups):
        swapped = outer._swappable_optimizer_subgroup(index)
        if swapped:
            outer._optimizer_states_and_gradient_swap_in(index)
        spans = []
        for parameter in group:
            _, offset, length = outer.grad_position[outer.get_param_id(parameter)]
            start = length * outer._get_param_partition_rank(parameter)
            # The last ranks' partitions are padded beyond the parameter's end.
            real = max(0, min(length, parameter.ds_numel - start))
            if real:
                spans.append((names[id(parameter)], start, offset, real))
        # With offload_optimizer.ratio below 1 some sub-groups stay on the device, with an optimizer of their own.
        on_device = getattr(outer, "subgroup_to_device", {}).get(index, "cpu") != "cpu"
        owner = outer.backup_optimizer if on_device else outer.optimizer
        yield _Flat(outer.fp32_partitioned_groups_flat[index], spans, owner)
        if swapped:
            outer._optimizer_states_and_gradient_swap_out(index)


def publish(engine: Any) -> None:
    """Recompute the 16-bit weights of all ranks from the fp32 ones. Collective."""
    outer = engine.optimizer
    if hasattr(outer, "fp32_partitioned_groups_flat"):
        # A forward pass may have fetched ahead: what it left gathered would outlive the new values.
        outer.empty_partition_cache()
        for index in range(len(outer.fp16_groups)):
            swapped = outer._swappable_optimizer_subgroup(index)
            if swapped:
                outer._optimizer_states_and_gradient_swap_in(index)
            outer._reassign_or_swap_out_partitioned_parameters(index)
            if swapped:
                outer._optimizer_states_and_gradient_swap_out(index)
        if outer.persistent_parameters:
            outer.persistent_parameters[0].all_gather(outer.persistent_parameters)
    elif hasattr(outer, "update_lp_params"):
        outer.update_lp_params()
