"""A torch module of the user's own, built, loaded and saved the way models of transformers are.

Its configuration says which class builds it and of what; around it is a shell with the interface that the rest of this
package knows from transformers' models. The shell holds the module's own children, parameters and buffers under their
own names, so that a checkpoint, an export and an optimizer know the module as its author does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from toolkit.errors import InputError, ModelError, with_type
from toolkit.models.files import check_files, check_weights
from toolkit.models.stored_names import files
from toolkit.models.stored_tensors import open_tensors
from toolkit.recipe.target import load_target, read_arguments

MODEL_TYPE = "toolkit_custom"
_REGISTER = nn.Module.register_parameter


class CustomConfig(PretrainedConfig):  # type: ignore[misc]
    """What a module is built of."""

    model_type = MODEL_TYPE
    target: str = ""
    """`module:Class` of the task whose `build` makes it."""
    arguments: dict[str, Any] | None = None
    """All that the constructor of that class is given."""


AutoConfig.register(MODEL_TYPE, CustomConfig, exist_ok=True)


class CustomModel(PreTrainedModel):  # type: ignore[misc]
    """The shell. Called with what the module is called with: floating-point inputs come to it in the format of its
    weights, and what it gives comes back in fp32, so that a loss written for fp32 is computed in it."""

    config_class = CustomConfig

    def __init__(self, config: CustomConfig) -> None:
        super().__init__(config)
        module = build(config)
        taken = [name for name in _own_names(module) if name in vars(self) or hasattr(type(self), name)]
        if taken:
            raise ModelError(
                f"the module of {config.target} has a part named {taken[0]!r}, a name that models of transformers use themselves",
                expected="another name",
                do=f"rename self.{taken[0]} in {type(module).__name__}",
            )
        # Not registered: its parts are this module's own, under the same names.
        self.__dict__["own_module"] = module
        for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[kind] = vars(module)[kind]
        self.training = module.training
        self.ties = _ties(module)
        self.post_init()
        self.all_tied_weights_keys = dict(self.ties)
        self._tied_weights_keys = {f"^{re.escape(target)}$": source for target, source in self.ties.items()}
        self.tie_weights()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the module makes of them."""
        dtype = next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), torch.float32)
        if dtype != torch.float32:
            inputs, named = tree_map(lambda value: _in_format(value, dtype), (inputs, named))
        found = self.__dict__["own_module"](*inputs, **named)
        return found if dtype == torch.float32 else tree_map(lambda value: _in_format(value, torch.float32), found)

    def train(self, mode: bool = True) -> CustomModel:
        """Of the module itself, too."""
        super().train(mode)
        self.__dict__["own_module"].train(mode)  # which may have a say of its own
        return self

    def tie_weights(self, missing_keys: Any = None, recompute_mapping: bool = True) -> None:
        """One parameter where the module uses one in several places."""
        for target, source in self.ties.items():
            path, _, leaf = target.rpartition(".")
            self.get_submodule(path)._parameters[leaf] = self.get_parameter(source)

    def _init_weights(self, module: nn.Module) -> None:
        """A module of one's own draws its weights in its constructor."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            own = self.__dict__.get("own_module")
            if own is None:
                raise
            return getattr(own, name)  # what the author has put on it beside parts and weights


class AutoCustomModel:
    """Stands where transformers' auto classes stand. Weights are read by `toolkit.models.partial` alone."""

    _model_mapping: ClassVar[Mapping[type, type]] = {CustomConfig: CustomModel}

    @classmethod
    def from_config(cls, config: CustomConfig, **_: Any) -> CustomModel:
        """The module with newly drawn weights; without any under torch.device("meta")."""
        return CustomModel(config)


def build(config: CustomConfig) -> nn.Module:
    """The module itself. Raises InputError for a class that cannot be imported and for what is no module.

    Under torch.device("meta"), and where accelerate keeps parameters empty, its parameters have no memory; its buffers
    are real, since constructors compute with numbers.
    """
    kind = load_target(config.target)
    task = kind(**read_arguments(config.target, kind, config.arguments or {}))
    is_empty = torch.empty(0).device.type == "meta" or nn.Module.register_parameter is not _REGISTER
    try:
        with torch.device("cpu"), _seeded(), _without_memory() if is_empty else nullcontext():
            module = task.build()
    except InputError:
        raise
    except Exception as error:
        raise ModelError(
            f"task.target={config.target!r}: build() raised {type(error).__name__}: {' '.join(str(error).split())[:300]} "
            f"({_place(error)})",
            expected="a module; build() is also called without memory for the parameters, which it may fill but not read",
            do="correct build(), or task.arguments, which it is made of",
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"task.target={config.target!r}: build() gave {with_type(module)}",
            expected="a torch.nn.Module",
            do="return the module from build()",
        )
    _check_parameters(config.target, module)
    _check_registered(config.target, module)
    return module


def _check_registered(target: str, module: nn.Module) -> None:
    """Raise ModelError for parts and parameters in Python's lists and dicts, which torch does not see: they would stay untrained."""
    known = {id(part) for part in (*module.modules(), *module.parameters())}
    for path, owner in module.named_modules():
        for name, value in vars(owner).items():
            if isinstance(value, list | tuple | dict) and any(id(part) not in known for part in _parts_in(value)):
                place, kind = f"{path}.{name}" if path else name, type(value).__name__
                raise ModelError(
                    f"task.target={target!r}: {place} is a {kind} that holds modules or parameters, which torch does not see there",
                    expected="a container of torch's, or they would be neither trained nor saved",
                    do=f"make self.{name} in {type(owner).__name__} nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.ParameterDict",
                )


def _parts_in(value: Any) -> Iterator[nn.Module | nn.Parameter]:
    """Modules and parameters in lists, tuples and dicts, and in those that these hold."""
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts_in(part)


def _check_parameters(target: str, module: nn.Module) -> None:
    """Raise ModelError for parameters that DeepSpeed cannot share out, or that are not of fp32."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 0:
            raise ModelError(
                f"task.target={target!r}: the parameter {name} has no dimension",
                expected="at least one: DeepSpeed shares parameters out as stretches of numbers",
                do=f"make it nn.Parameter(torch.full((1,), ...)) instead of a single number: {name}",
            )
        if parameter.dtype != torch.float32:
            raise ModelError(
                f"task.target={target!r}: the parameter {name} is of {parameter.dtype}",
                expected="torch.float32 in build(): precision.dtype says what is computed in",
                do="leave out half(), bfloat16() and dtype= in build()",
            )


def load_custom(folder: str | Path) -> nn.Module:
    """The trained module of the export in `folder`, on the CPU, in fp32 and in evaluation mode.

    Raises InputError for a folder that holds none, for a class that cannot be imported and for weights that are not its own.
    """
    config = read_config(str(folder))
    check_weights(str(folder))
    with torch.device("meta"):
        module = build(config)
    stored = files(Path(folder))
    names = {*module.state_dict()}
    ties = _ties(module)
    weights: dict[str, Tensor] = {}
    for file in sorted({*stored.values()}):
        with open_tensors(file) as opened:
            weights |= {name: opened.part(name)[...] for name, place in stored.items() if place == file}
    weights |= {target: weights[source] for target, source in ties.items() if source in weights}
    wrong = sorted(names ^ weights.keys())
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong += [name for name in names & weights.keys() if shapes[name] != tuple(weights[name].shape)]
    if wrong:
        raise ModelError(
            f"{folder}: {wrong[0]} is not the same in its weights and in the module that {config.target} builds",
            expected="the class as it was when this was trained",
            do="put that version of it on PYTHONPATH",
        )
    floats = {name for name, value in weights.items() if value.is_floating_point()}
    weights = {name: value.float() if name in floats else value for name, value in weights.items()}
    module.load_state_dict(weights, assign=True)
    for target, source in ties.items():
        path, _, leaf = target.rpartition(".")
        module.get_submodule(path)._parameters[leaf] = module.get_parameter(source)
    return module.eval()


def read_config(folder: str) -> CustomConfig:
    """The configuration in `folder`, an export of such a module. Raises ModelError where it is none."""
    check_files("model.path", folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _no_export(folder, " ".join(str(error).split())[:200]) from None
    if not isinstance(config, CustomConfig):
        raise _no_export(folder, f"it holds a {config.model_type}")
    return config


def sparse_parts(module: nn.Module) -> list[str]:
    """Names of the embeddings in `module` whose gradients would be sparse."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return [name for name, part in module.named_modules() if isinstance(part, kinds) and part.sparse]


def _no_export(folder: str, why: str) -> ModelError:
    return ModelError(
        f"{folder}: {why}",
        expected="the export of a run with task=Custom(...)",
        do="name the export folder of such a run",
    )


def _own_names(module: nn.Module) -> list[str]:
    return [*module._modules, *module._parameters, *module._buffers]


def _ties(module: nn.Module) -> dict[str, str]:
    """Second and further names of each parameter -> the first."""
    first: dict[int, str] = {}
    names = [
        (first.setdefault(id(weight), name), name) for name, weight in module.named_parameters(remove_duplicate=False)
    ]
    return {name: source for source, name in names if source != name}


@contextmanager
def _without_memory() -> Iterator[None]:
    """Parameters are on the meta device as soon as a module has them; one that several have stays one."""
    known: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # with the original, so that its id stays its own

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        _REGISTER(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            module._parameters[name] = known.setdefault(id(parameter), (parameter, empty))[1]

    outer = nn.Module.register_parameter
    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = outer  # type: ignore[method-assign]


def _in_format(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


@contextmanager
def _seeded() -> Iterator[None]:
    """numpy's and Python's generators follow torch's for as long as a module is built; afterwards they are as they were."""
    states, seed = (np.random.get_state(), random.getstate()), torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def _place(error: Exception) -> str:
    """The line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
