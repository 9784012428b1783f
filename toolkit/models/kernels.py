"""Fused kernels of liger-kernel (RMSNorm, rotary embedding, SwiGLU and GeGLU) in place of transformers' own code.

liger knows which variant each architecture needs, and patches the classes of transformers as well as one model. Here
it patches the one model only: the classes are put back, and the rotary function, which transformers' attention finds
among its module's names, is given to this model's attention alone. So several models in one process do not meet. The
loss is ours (`toolkit.models.cross_entropy`), and experts keep transformers' grouped products.

Patched is what a module computes, never its parameters: whatever gathers, cuts or counts them does not notice. It is
done before a model is cut, so that each stage and each tensor-parallel rank has its part.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.agreement import Alternative
from toolkit.models.compile import missing_compiler
from toolkit.recipe import Recipe

WANTED = ("rope", "rms_norm", "swiglu", "geglu")
"""Arguments of liger's functions for kernels that are taken where liger takes them by default."""

LEFT = ("cross_entropy", "fused_linear_cross_entropy", "layer_norm")
"""Arguments for what stays as it is."""

OURS = "LigerExperts"
"""The class whose forward is not taken."""

PROBE_TOKENS = 13


class Kernels(Alternative):
    """The fused modules of one model."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: Counter[str] = Counter()
        """Modules by the name of their class."""

    def excess(self, model: nn.Module) -> float:
        """How far the kernels move the hidden states of a short text: see `toolkit.models.agreement.excess`."""
        return self._excess(model, PROBE_TOKENS)

    def switch(self, module: nn.Module, fused: Callable[..., Any]) -> None:
        """Let `module.forward` be `fused`, or what it was while the kernels are off."""
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return fused(*args, **kwargs) if self.active else plain(*args, **kwargs)

        module.forward = forward
        self.replaced[type(module).__name__] += 1


def are_taken(recipe: Recipe, config: PretrainedConfig, device: str) -> bool:
    """Whether a run of `recipe` on devices of this kind computes with them, as far as this machine can tell."""
    return _is_asked_for(recipe, device) and obstacle(config, device) is None


def _is_asked_for(recipe: Recipe, device: str) -> bool:
    wanted = recipe.model.kernels
    return wanted == "liger" or (wanted == "auto" and not recipe.model.compile and device != "cpu")


def obstacle(config: PretrainedConfig, device: str) -> tuple[str, str] | None:
    """Why the kernels cannot be had for a model of `config`, and what to do; None where they can."""
    if device == "cpu":
        return "they are for CUDA devices, and this run computes on a CPU", "leave model.kernels at 'auto'"
    if not is_installed():
        return "liger-kernel is not installed", "pip install 'toolkit[liger]'"
    lacking = missing_compiler("cuda")
    if lacking is not None:
        return lacking
    if not is_known(config):
        return f"liger-kernel has none for {config.model_type}", "leave model.kernels at 'auto'"
    return None


def choose_kernels(recipe: Recipe, config: PretrainedConfig, device: str) -> tuple[bool, str]:
    """Whether liger's kernels are used, by `model.kernels`; and what to say where "auto" cannot have them.

    Raises ModelError where the recipe asks for them and they cannot be had.
    """
    if not _is_asked_for(recipe, device):
        return False, ""
    found = obstacle(config, device)
    if found is None:
        return True, ""
    why, do = found
    if recipe.model.kernels == "liger":
        raise ModelError(
            f"model.kernels='liger': {why}",
            expected="a CUDA device, a compiler, and an architecture that liger knows",
            do=do,
        )
    advice = "" if "leave" in do else f"; {do}"
    return False, f"kernels: the model's own ({why}{advice})"


@functools.cache  # a plan asks it for every strategy
def is_installed() -> bool:
    """Whether liger-kernel is there, and Triton, which it is written in."""
    return all(importlib.util.find_spec(name) is not None for name in ("liger_kernel", "triton"))


def is_known(config: PretrainedConfig) -> bool:
    """Whether liger-kernel, which must be installed, has kernels for the architecture."""
    return config.model_type in _by_architecture()


def fuse(model: nn.Module) -> Kernels:
    """Put liger's kernels into `model`, one that liger knows, whole and not yet wrapped by anyone else."""
    apply = _by_architecture()[model.config.model_type]  # type: ignore[union-attr, index]
    parameters = inspect.signature(apply).parameters
    options = {name: bool(parameters[name].default) for name in WANTED if name in parameters}
    options |= {name: False for name in LEFT if name in parameters}
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        apply(model=model, **options)
        changed = {name: value for name, value in names.items() if before.get(name) is not value}
    finally:
        names.update(before)
    kernels = Kernels()
    for module in model.modules():
        fused = module.__dict__.pop("forward", None)
        if fused is not None and not fused.__qualname__.startswith(OURS):
            kernels.switch(module, fused)
    functions = {name: value for name, value in changed.items() if isinstance(value, FunctionType)}
    for module in model.modules():
        found = _with_names(type(module).forward, names, functions)
        if found is not None:
            kernels.switch(module, found.__get__(module))
    return kernels


def check_kernels(excess: float, architecture: str) -> None:
    """Raise ModelError when the kernels change what the model computes."""
    if not excess < 1.0:
        raise ModelError(
            f"model.kernels='liger': liger-kernel's kernels change what {architecture} computes (by {excess:.1f} times rounding)",
            expected="kernels that compute what transformers does",
            do="set model.kernels='none' for this model",
        )


def _by_architecture() -> dict[str, Callable[..., None]]:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    found: dict[str, Callable[..., None]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return found


def _with_names(function: Any, names: dict[str, Any], changed: dict[str, FunctionType]) -> FunctionType | None:
    """`function` of the module with `names`, seeing `changed` in their place; None where it uses none of them."""
    if getattr(function, "__globals__", None) is not names or not changed.keys() & set(function.__code__.co_names):
        return None
    seen = FunctionType(
        function.__code__, {**names, **changed}, function.__name__, function.__defaults__, function.__closure__
    )
    seen.__kwdefaults__ = function.__kwdefaults__
    return seen
