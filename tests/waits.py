"""Which lines of a piece of work would make a GPU's queue run empty: those that look at a tensor's values on the host."""

from __future__ import annotations

import sys
from collections import Counter
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "masked_select",
}
"""Of a tensor, as Python code calls them."""
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal"}
"""Of torch, also where its own code calls them: the shape or the value of their result is known to the device alone."""
PACKAGES = ("toolkit", "deepspeed", "transformers")


class Waits:
    """While open, counts the calls of this thread by where they are made, as "package/file.py:function"."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._modes = (_Methods(self.found), _Operators(self.found))

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, where)


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        by_mask = name == "__getitem__" and any(_is_mask(index) for index in _indices(args[1]))
        # The device of another tensor, and what DeepSpeed calls its own, are the CPU here where there it would be the GPU.
        named = "cpu" in [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
        to_host = name == "to" and named and not _place().startswith("deepspeed")
        if name in METHODS or by_mask or to_host:
            self.found[_place()] += 1
        return function(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name.removeprefix("aten::") in OPERATORS:
            self.found[_place()] += 1
        return function(*args, **(kwargs or {}))


def _indices(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(index: Any) -> bool:
    return torch.is_tensor(index) and index.dtype == torch.bool


def _place() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        parts = frame.f_code.co_filename.split("/")
        for package in PACKAGES:
            if package in parts:
                at = len(parts) - 1 - parts[::-1].index(package)
                return f"{'/'.join(parts[at:])}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
