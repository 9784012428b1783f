"""torch's flash kernel for documents of any lengths laid end to end, in whatever form this torch has it.

`torch.nn.attention.varlen.varlen_attn` came with torch 2.10, where it knew causal attention alone (`is_causal`); since
2.11 it takes a window, a scale and grouped heads. What it takes is read from its signature, once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_HEAD = 256
"""Head size up to which flash attention computes."""

WIDTH = 8
"""Of which head sizes must be multiples."""

OLDEST_DEVICE = (8, 0)
"""CUDA compute capability from which flash attention runs."""

TRIED = (5, 3)
"""Tokens of the documents on which the kernel is tried."""

TOLERANCE = 0.05
"""Of the largest value. Both sides round to 16 bits; a document that sees another moves by its own size."""


class VarlenKernel:
    """A `function` with the arguments of any version of varlen_attn, for tensors of `dtypes` on a `device`."""

    def __init__(
        self,
        function: Callable[..., Any],
        device: str = "cuda",
        dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16),
    ) -> None:
        self._function, self.device, self.dtypes = function, device, tuple(dtypes)
        self._names = frozenset(inspect.signature(function).parameters)

    @property
    def takes_windows(self) -> bool:
        """Whether it computes anything but full and causal attention."""
        return "window_size" in self._names

    @property
    def repeats_heads(self) -> bool:
        """Whether keys and values of grouped heads are repeated for it."""
        return "enable_gqa" not in self._names

    def fits(self, query: Tensor, value: Tensor, window: int | None) -> bool:
        """Whether it computes these heads [..., D] with a window of that many tokens."""
        return (
            query.device.type == self.device
            and query.dtype == value.dtype
            and query.dtype in self.dtypes
            and max(query.shape[-1], value.shape[-1]) <= LARGEST_HEAD
            and (window is None or self.takes_windows)
        )

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Tensor,
        longest: int,
        *,
        causal: bool,
        window: int | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Attention inside each document of query [N, H, D], key [N, K, D], value [N, K, E]; returns [N, H, E].

        `bounds` int32 [documents + 1] are where they begin and the last one ends, `longest` the tokens of the longest. A
        token sees itself and the window - 1 before it, and as many after it where attention is not `causal`. `scale`
        None: the root of 1 / D.
        """
        size, values = query.shape[-1], value.shape[-1]
        width = -(-max(size, values) // WIDTH) * WIDTH
        scale = size**-0.5 if scale is None else scale
        options: dict[str, Any] = {}
        if "scale" in self._names:
            options["scale"] = scale
        else:
            query = query * (scale * width**0.5)
        if self.takes_windows:
            reach = -1 if window is None else window - 1
            options["window_size"] = (reach, 0 if causal else reach)
        else:
            options["is_causal"] = causal
        if self.repeats_heads:
            key, value = (
                tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)
                if tensor.shape[1] != query.shape[1]
                else tensor
                for tensor in (key, value)
            )
        else:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        query, key, value = (
            nn.functional.pad(tensor, (0, width - tensor.shape[-1])) if tensor.shape[-1] != width else tensor
            for tensor in (query, key, value)
        )
        found: Tensor = self._function(query, key, value, bounds, bounds, longest, longest, **options)
        return found[..., :values] if values != width else found


def torch_kernel() -> VarlenKernel | None:
    """torch's own; None before torch 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return VarlenKernel(varlen_attn)


KERNEL = torch_kernel()


@functools.cache
def kernel_fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why torch's kernel is not used for `dtype` on `device`; None where it is. Tries it once, forward and backward."""
    name = str(dtype).removeprefix("torch.")
    if KERNEL is None:
        return f"torch {torch.__version__} has no variable-length kernel (2.10 has)"
    if device.type != KERNEL.device or dtype not in KERNEL.dtypes:
        return f"the variable-length kernel computes in fp16 and bf16 on CUDA, not in {name} on {device.type}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_DEVICE:
        return f"the variable-length kernel does not run on {torch.cuda.get_device_name(device)}"
    try:
        difference = _trial(KERNEL, device, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"the variable-length kernel fails here: {lines[0][:200]}"
    if not difference < TOLERANCE:
        return f"the variable-length kernel computes something else here (by {difference:.0%} of the largest value)"
    return None


def _trial(kernel: VarlenKernel, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference, of outputs and gradients, from plain attention of each document in fp32; relative."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(TRIED), 4, 64), (sum(TRIED), 2, 64), (sum(TRIED), 2, 64))
    given = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator).to(device)
    bounds = torch.tensor([0, TRIED[0], sum(TRIED)], dtype=torch.int32, device=device)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernel(query, key, value, bounds, max(TRIED), causal=True)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pieces = zip(*(torch.split(tensor, list(TRIED)) for tensor in (query, key, value)), strict=True)
        return torch.cat([_causal(*piece) for piece in pieces])

    def outcome(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        found = function(*inputs)
        return [found, *torch.autograd.grad((found.float() * weights).sum(), inputs)]

    # Start-up probes run without gradients, and this one is about them too.
    with torch.enable_grad():
        found = outcome(ours, given)
        wanted = outcome(plain, [tensor.float() for tensor in given])
    return max(
        float((one.float() - other).abs().max() / other.abs().max()) for one, other in zip(found, wanted, strict=True)
    )


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of one document, [n, H, D] and [n, K, D], written out."""
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) * query.shape[-1] ** -0.5
    later = torch.ones(len(query), len(query), dtype=torch.bool, device=query.device).triu(1)
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(later, float("-inf")).softmax(-1), value)
