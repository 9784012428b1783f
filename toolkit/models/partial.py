"""Weights for a model of which this rank holds only a part: a pipeline stage, its shares of a tensor-parallel layer, or both.

Only what is wanted is read, straight from the safetensors files. Checkpoints whose tensors have to be converted on the
way (experts stored one by one, a fused matrix to be split) and other formats go through transformers, which then
holds the stage's whole parameters for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from toolkit.models.absent import Absent
from toolkit.models.custom import CustomModel
from toolkit.models.loading import load_weights
from toolkit.models.output_layer import is_of_a_head
from toolkit.models.shards import Shard
from toolkit.models.stored_names import Placement, Renaming, files, shapes

Placed = Callable[[nn.Parameter], None]
"""Is handed a parameter that has got its values."""


def load_part(
    model: nn.Module,
    source: str,
    shards: Mapping[str, Shard] | None = None,
    *,
    remade: Collection[str] = (),
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    placed: Placed | None = None,
) -> list[str]:
    """Fill the parameters and persistent buffers of a skeleton from the checkpoint `source`, in place.

    Parameters are kept as `dtype` on `device`, buffers in fp32 where DeepSpeed finds them and moves them. `shards` says
    for which parameters the skeleton holds, or is to hold, only a part; `placed` is handed
    each parameter once it is there. Parameters `remade` stay as they are, whatever the checkpoint has. Returns, sorted, their
    names and those of parameters that the checkpoint does not have: all of them are still on the meta device. Raises
    ModelError for a checkpoint that cannot be read or whose shapes differ.
    """
    shards = shards or {}
    wanted = {name: shape for name, shape in _wanted(model, shards).items() if name not in remade}
    parameters = {name for name, _ in model.named_parameters()}
    found = _locate(model, source, wanted)
    missing: Collection[str] = wanted.keys() - found.keys() if found is not None else ()
    if found is not None:
        values = _read(found, shards, parameters, device, dtype)
    else:
        values, missing = _by_transformers(model, source, wanted, shards, remade)
    for name, value in values:
        if name in missing:
            continue
        parameter = place(model, name, value.to(device, dtype) if name in parameters else value)
        if placed is not None and parameter is not None:
            placed(parameter)
    return sorted({*missing, *remade})


def _by_transformers(
    model: nn.Module, source: str, wanted: Collection[str], shards: Mapping[str, Shard], remade: Collection[str]
) -> tuple[Iterator[tuple[str, Tensor]], list[str]]:
    """The tensors `wanted`, or their local parts, in fp32, and the names of those that the checkpoint does not have."""
    stage_0 = {"zero_optimization": {"stage": 0}}
    whole, missing = load_weights(_same_parts(model), source, model.config, stage_0, remade=remade)
    values = whole.state_dict()
    parts = (
        (name, shards[name].cut(value).clone() if name in shards else value)
        for name in wanted
        for value in [values.pop(name)]
    )
    return parts, [name for name in missing if name in wanted]


def place(model: nn.Module, name: str, value: Tensor) -> nn.Parameter | None:
    """Make `value` the data of the parameter or buffer `name`, wherever the model uses it; marks on the parameter stay.

    Returns the parameter, None for a buffer.
    """
    owner, leaf = _owner(model, name)
    old = owner._parameters.get(leaf)
    if old is None:
        owner._buffers[leaf] = value
        return None
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    for module in model.modules():
        for alias, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[alias] = new
    return new


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _wanted(model: nn.Module, shards: Mapping[str, Shard]) -> dict[str, tuple[int, ...]]:
    """Whole shapes of the parameters, each under one name, and of the buffers that checkpoints hold."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wanted |= {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in aliases}
    return {name: shards[name].shape if name in shards else shape for name, shape in wanted.items()}


def _locate(model: nn.Module, source: str, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Placement] | None:
    """Where each wanted tensor lies as it is; None when one is to be converted, and for other files.

    Only of a head may a tensor not be there: what else is missing may have another form in the file.
    """
    # Beside what is wanted, what the whole model ties to it: a checkpoint may hold either.
    ties: Mapping[str, str] = getattr(model, "ties_of_the_whole", None) or model.all_tied_weights_keys  # type: ignore[assignment]
    renaming = Renaming(model, {*wanted, *ties})
    found: dict[str, Placement] = {}
    where = files(Path(source))
    if any(file.suffix != ".safetensors" for file in where.values()):
        return None
    for stored, file in where.items():
        name, is_converted = renaming(stored)
        if not is_converted:
            found[name] = (file, stored)
    for target, origin in ties.items():
        if origin in wanted and target in found:
            found.setdefault(origin, found[target])
    found = {name: placement for name, placement in found.items() if name in wanted}
    if isinstance(model, CustomModel):
        return found  # nothing converts its tensors: what is missing is missing
    if not all(is_of_a_head(model, name) for name in wanted.keys() - found.keys()):
        return None
    shapes_agree = all(shape == wanted[name] for name, shape in shapes(found))
    return found if shapes_agree else None


def _read(
    found: Mapping[str, Placement],
    shards: Mapping[str, Shard],
    parameters: Collection[str],
    device: torch.device | None,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, or the local part of it: `parameters` as `dtype` on `device`, others in fp32 (integers as they are)."""
    for name, (file, stored) in found.items():
        # Opened for one tensor at a time: the pages that were read stay this process's until the file is closed.
        with safe_open(file, "pt") as opened:
            part = opened.get_slice(stored)
            shard = shards.get(name)
            if shard is None:
                value = part[...]
            else:
                before = (slice(None),) * shard.dim
                pieces = [part[(*before, slice(start, start + length))] for start, length in shard.spans]
                value = torch.cat(pieces, shard.dim)
            # Copied, so that nothing refers to the mapped file.
            if name in parameters:
                value = value.to(device, dtype, copy=True)
            else:
                value = value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        yield name, value


def _same_parts(model: nn.Module) -> Any:
    """The model's class, building only the parts that `model` has, for transformers to load into."""

    class Part(type(model)):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for name, module in model.named_modules():
                if isinstance(module, Absent):
                    self.set_submodule(name, module)
            self.all_tied_weights_keys = dict(model.all_tied_weights_keys)  # type: ignore[arg-type]

    # transformers looks for conversions and patches under the class's name.
    Part.__name__ = Part.__qualname__ = type(model).__name__
    Part.__module__ = type(model).__module__
    return Part
