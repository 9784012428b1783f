"""Random weights, one parameter at a time: what a rank holds of a new model depends on the seed, not on who holds it.

An architecture draws its weights in `_init_weights(module)`, module after module, each taking the next numbers of one
generator. Here every parameter has a generator of its own, seeded from the run's seed and the parameter's name, and the
architecture's own function fills that parameter alone while all others are on the meta device. So a pipeline stage, a
tensor-parallel rank or a ZeRO-3 partition makes what it needs, and no more than one parameter is ever whole in memory.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import guard_torch_init_functions, no_tie_weights

from toolkit.models.config import unbuildable
from toolkit.models.partial import Placed, place
from toolkit.models.quiet import quiet
from toolkit.models.shards import Shard

Initialise = Callable[[], None]
"""Draws the weights of one module, where they are not on the meta device."""


class RandomWeights:
    """What `auto_class` makes of `config`, of which `fields` were asked for, in a run of `seed`.

    Raises ModelError where no model can be built of `config`.
    """

    def __init__(
        self, auto_class: Any, config: PretrainedConfig, seed: int, fields: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._auto_class, self._config, self._seed = auto_class, config, seed
        self._from_constructor: dict[str, Tensor] | None = None
        try:
            # Untied: what shares a weight does not draw it, but takes what the source of the tie has drawn.
            with init_empty_weights(include_buffers=False), no_tie_weights(), generator_of(seed, ""), quiet():
                self._model: PreTrainedModel = auto_class.from_config(copy.deepcopy(config), dtype=torch.float32)
                self._writers = _writers(self._model)
        except Exception as error:
            # Every architecture fails in its own way on what it lacks (a package, a field).
            raise unbuildable(fields, error) from None
        self._ties: Mapping[str, str] = getattr(self._model, "all_tied_weights_keys", None) or {}

    def parameter(self, name: str) -> Tensor:
        """The whole parameter `name`, fp32, on the CPU."""
        name = self._ties.get(name, name)
        path, _, leaf = name.rpartition(".")
        owner = self._model.get_submodule(path)
        absent = owner._parameters[leaf]
        assert absent is not None
        value = nn.Parameter(torch.full(absent.shape, torch.nan), requires_grad=False)
        owner._parameters[leaf] = value
        try:
            with generator_of(self._seed, name), torch.no_grad(), guard_torch_init_functions():
                for initialise in self._writers.get(name, ()):
                    initialise()
        finally:
            owner._parameters[leaf] = absent
        return self._constructed()[name] if bool(value.isnan().any()) else value.data

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer of the model."""
        for name, value in self._model.named_buffers():
            yield name, self._constructed()[name] if value.is_meta else value

    def _constructed(self) -> dict[str, Tensor]:
        """What the constructor fills and `_init_weights` does not: parameters, and buffers that are computed from some
        (spectral norms). A whole model is built for them, once."""
        # Two old architectures of transformers 5.23 draw in their constructors (openai-gpt, apertus).
        if self._from_constructor is None:
            with generator_of(self._seed, ""), quiet():
                whole = self._auto_class.from_config(copy.deepcopy(self._config), dtype=torch.float32)
            self._from_constructor = {
                name: value.data for name, value in whole.named_parameters() if name not in self._writers
            } | {name: value for name, value in whole.named_buffers() if self._model.get_buffer(name).is_meta}
        return self._from_constructor


def fill(
    model: nn.Module,
    weights: RandomWeights,
    names: Collection[str] | None = None,
    *,
    shards: Mapping[str, Shard] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    placed: Placed | None = None,
) -> None:
    """Give a skeleton, or what is left of one, its random weights in place: the parameters `names`, else all and the buffers.

    `shards` says of which parameters the model holds a part only. Parameters are drawn in fp32, whatever `dtype` they are
    kept in on `device`. `placed` is handed each parameter once it is there.
    """
    present = {name for name, _ in model.named_buffers()}
    for name, value in weights.buffers() if names is None else ():
        if name in present:
            place(model, name, value.to(device))
    wanted = [name for name, _ in model.named_parameters()] if names is None else names
    for name in wanted:
        value = weights.parameter(name)
        if shards and name in shards:
            value = shards[name].cut(value).clone()
        parameter = place(model, name, value.to(device, dtype))
        if placed is not None and parameter is not None:
            placed(parameter)


def _writers(model: PreTrainedModel) -> dict[str, list[Initialise]]:
    """For every parameter what draws it, in the order in which transformers calls it (initialize_weights, smart_apply)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    writers: dict[str, list[Initialise]] = {}

    def visit(module: nn.Module, owner: PreTrainedModel) -> None:
        for child in module.children():
            visit(child, child if isinstance(child, PreTrainedModel) else owner)

        def initialise() -> None:
            owner._init_weights(module)

        versions = {id(parameter): parameter._version for parameter in module.parameters()}
        initialise()
        for parameter in module.parameters():
            if parameter._version != versions[id(parameter)]:
                writers.setdefault(names[id(parameter)], []).append(initialise)

    with torch.no_grad(), guard_torch_init_functions():
        visit(model, model)
    return writers


@contextmanager
def generator_of(seed: int, name: str) -> Iterator[None]:
    """torch's CPU generator, seeded from `seed` and `name`; afterwards it is as it was."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
    try:
        yield
    finally:
        torch.set_rng_state(state)
