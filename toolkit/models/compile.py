"""Each layer compiled by torch: one piece of code for all layers that are alike, so that a start costs seconds.

The function that a layer's checkpointing would run again is what is compiled: a recomputed layer runs the same code
twice. Lengths and batch sizes are symbols from the first call on (but one row alone is a case of its own, as ever with
torch), so packed batches of any shape find what is there. Attention told where documents end is left out: what it is
told is another thing in each batch, and its kernels are not torch's to fuse. So are the collectives of tensor
parallelism. Evaluation, generation and the probes at start run the layers as they are.

ZeRO-3 hangs hooks on modules, each a break in the compiled code. A layer that `toolkit.engine.experts` has made one unit
(a "leaf") is gathered whole before it is called, and then compiled whole as at any other stage. For its backward pass
the compiled code keeps the parameters themselves, whose memory ZeRO-3 frees and fills again, and no views of them.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial, wraps
from os import environ
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from toolkit.errors import LaunchError, ModelError
from toolkit.models.attention import MASKED

VARIANTS = 64
"""Versions of one function that torch may keep: kinds of layers, with and without a mask, one row and several, tiles."""


BACKEND: str | Callable[..., Any] = "inductor"
"""What makes code of torch's graphs."""


class Told:
    """What attention is told beside tensors (lists of document lengths, counts), hidden from the compiler.

    It looks at the class of an argument that it does not know, never inside: other documents are no other program.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


class CompiledLayers:
    """The compiled code of one model's layers, by the function that it was made of."""

    def __init__(self) -> None:
        self._made: dict[Callable[..., Any], Callable[..., Any]] = {}

    def use_in(self, layer: GradientCheckpointingLayer) -> None:
        """Compute `layer` by compiled code in training, inside its checkpoint if it has one."""
        layer_: Any = layer
        keep = layer_._gradient_checkpointing_func if layer_.gradient_checkpointing else _call
        # transformers hands this the layer's own function, in training only: what it is meant for, and all we need.
        layer_._gradient_checkpointing_func = partial(self._run, keep)
        layer_.gradient_checkpointing = True

    def _run(self, keep: Callable[..., Any], function: partial[Any], *args: Any) -> Any:
        made = self._made.get(function.func)
        if made is None:
            made = torch.compile(function.func, dynamic=True, backend=BACKEND)
            self._made[function.func] = made
        told = {key: Told(value) if _is_told(value) else value for key, value in function.keywords.items()}
        return keep(partial(made, *function.args, **told), *args)


def compile_layers(model: nn.Module) -> CompiledLayers:
    """Compile, at its first training step, every layer of `model`, whose attention and checkpointing are chosen.

    Raises ModelError for a model without transformers' layers.
    """
    layers = list(_layers(model))
    if not layers:
        raise ModelError(
            f"model.compile=True: {type(model).__name__} has no layers that can be compiled one by one",
            expected="a model built of transformers' GradientCheckpointingLayer",
            do="set model.compile=False for this model",
        )
    # The default of 8 is soon reached where layers are of several kinds; what comes after it would run uncompiled.
    torch._dynamo.config.recompile_limit = VARIANTS
    implementation = str(model.config._attn_implementation)  # type: ignore[union-attr]
    if implementation not in MASKED:
        _leave_out_attention(implementation)
    compiled = CompiledLayers()
    for layer in layers:
        for module in layer.modules():
            _leave_out_edges(module)
        compiled.use_in(layer)
    return compiled


def count_compiled() -> int:
    """Graphs that torch has compiled in this process so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def check_compiler(device: str) -> None:
    """Raise LaunchError where torch could not build the code that it generates for `device` ("cpu" or "cuda")."""
    found = missing_compiler(device)
    if environ.get("TORCHDYNAMO_DISABLE") == "1":
        found = "TORCHDYNAMO_DISABLE=1 switches it off", "unset TORCHDYNAMO_DISABLE"
    if found is not None:
        raise LaunchError(
            f"model.compile=True on {device}: {found[0]}",
            expected="a compiler and Python's headers: torch generates code and builds it at the first step",
            do=f"{found[1]}; or set model.compile=False",
        )


def missing_compiler(device: str) -> tuple[str, str] | None:
    """What building generated code on `device` lacks, and what to do; None where nothing is missing."""
    # What torch._inductor.cpp_builder and Triton's runtime/build.py call.
    variable, usual = ("CXX", ["g++", "clang++"]) if device == "cpu" else ("CC", ["gcc", "clang", "cc"])
    wanted = [environ[variable]] if variable in environ else usual
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not any(map(shutil.which, wanted)):
        return f"there is no {' or '.join(wanted)} on PATH", f"install g++ (apt-get install g++), or set {variable}"
    if not headers.is_file():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        return f"{headers} is missing", f"install Python's headers (apt-get install {package})"
    return None


def _layers(module: nn.Module) -> Iterator[GradientCheckpointingLayer]:
    """The layers of a model; those inside another one are its parts."""
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _layers(child)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _is_told(value: Any) -> bool:
    # A number is a symbol at best, and a list one guard for each entry.
    return isinstance(value, list) or (isinstance(value, int) and not isinstance(value, bool))


def _leave_out_attention(implementation: str) -> None:
    """Make the attention function of that name a call that compiled code goes around, once per process."""
    plain = ALL_ATTENTION_FUNCTIONS[implementation]
    if getattr(plain, "is_left_out", False):
        return

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @wraps(plain, updated=())
    def attention(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{key: value.value if isinstance(value, Told) else value for key, value in kwargs.items()})

    attention.is_left_out = True
    AttentionInterface.register(implementation, attention)


def _leave_out_edges(module: nn.Module) -> None:
    """Go around a `forward` that says that it does more than compute: collectives of tensor parallelism."""
    forward: Any = module.__dict__.get("forward")
    if getattr(forward, "has_collectives", False):
        module.forward = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
