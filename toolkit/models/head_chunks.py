"""The output head in chunks of tokens: buffers that every chunk reuses, and the gradients summed over chunks.

What a loss computes of a chunk's logits is its own affair (`cross_entropy`, `log_probabilities`); it never sees more of
the tokens x vocabulary matrix than one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from toolkit.models.alike import alike, kind_of
from toolkit.models.vocabulary import VocabularyPart

IGNORED = -100
"""Target of a position without loss, as in torch.nn.functional.cross_entropy."""

CHUNK_BYTES = 128 * 2**20
"""Size of a chunk of logits, in the inputs' number format, unless `chunk_tokens` says otherwise. On a CPU 64 MiB is slower."""

LEAST_TOKENS = {"cuda": 2048}
"""Smallest chunk chosen by default, by device (256 elsewhere): below it, adding each chunk's [V, D] gradient costs more
than computing it. A GPU adds slowly for how fast it multiplies."""

BLOCK_BYTES = {"cpu": 4 * 2**20}
"""Size of the fp32 rows whose softmax is taken at a time, by device (CHUNK_BYTES elsewhere): they should fit a cache."""


def default_chunk(weight: Tensor) -> int:
    """Tokens per chunk for a head with `weight` [V, D]."""
    least = LEAST_TOKENS.get(kind_of(weight), 256)
    return max(least, CHUNK_BYTES // (weight.element_size() * weight.shape[0]))


def as_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three in the format that autocast, where it is on, wants for a product."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def valid_rows(targets: Tensor) -> Tensor | None:
    """Indices of the positions with loss; None: all of them."""
    if isinstance(targets, FakeTensor):
        return None  # A memory trace has no values: take the case that needs most.
    return (targets != IGNORED).nonzero().squeeze(1)


@cache
def _adds_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether 16-bit products can be added to an fp32 matrix at once there (torch >= 2.8 on CUDA), asked of a small one."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    total, ones = torch.ones(16, 16, device=device), torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(total, ones.T, ones, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 17.0).all())


@dataclass
class HeadChunks:
    """Inputs, buffers that every chunk reuses, and gradients summed so far. C is tokens per chunk."""

    hidden: Tensor  # [N, D], positions with loss only
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    chunk_tokens: int  # C
    logits: Tensor  # [C, V] in the inputs' type; becomes the gradient with respect to the logits
    block: Tensor  # [B, V] fp32 (float64 for float64 inputs): the rows whose softmax is being computed
    hidden_grad: Tensor | None  # [N, D] in the inputs' type
    weight_grad: Tensor | None  # [V, D], fp32 where several 16-bit chunks are summed
    weight_product: Tensor | None  # [V, D] in the inputs' type: one chunk's share, where it cannot be added at once
    bias_grad: Tensor | None  # [V] fp32
    part: VocabularyPart | None  # where V is one rank's share of the vocabulary

    @classmethod
    def create(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needs: list[bool],
        chunk_tokens: int,
        part: VocabularyPart | None,
    ) -> Self:
        """Buffers for `hidden`, cut into equal chunks of at most `chunk_tokens`; `needs` as in ctx.needs_input_grad."""
        count = -(-len(hidden) // chunk_tokens)
        size = min(len(hidden), -(-len(hidden) // max(1, count)))
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        block = max(1, min(size, BLOCK_BYTES.get(kind_of(hidden), CHUNK_BYTES) // (4 * len(weight))))
        summed = dtype if count > 1 else weight.dtype
        is_apart = summed != weight.dtype and not _adds_in_fp32(hidden.device, hidden.dtype)
        return cls(
            hidden=hidden,
            weight=weight,
            bias=bias,
            chunk_tokens=max(1, size),
            logits=hidden.new_empty(size, len(weight)),
            block=hidden.new_empty(block, len(weight), dtype=dtype),
            hidden_grad=torch.empty_like(hidden) if needs[0] else None,
            weight_grad=torch.zeros_like(weight, dtype=summed) if needs[1] else None,
            weight_product=torch.empty_like(weight) if needs[1] and is_apart else None,
            bias_grad=torch.zeros_like(bias, dtype=dtype) if needs[2] and bias is not None else None,
            part=part,
        )

    @property
    def wants_gradients(self) -> bool:
        """Whether any gradient is summed."""
        return any(grad is not None for grad in (self.hidden_grad, self.weight_grad, self.bias_grad))

    def slices(self) -> Iterator[slice]:
        """The chunks of the tokens, in order."""
        for start in alike(range(0, len(self.hidden), self.chunk_tokens)):
            yield slice(start, start + self.chunk_tokens)

    def blocks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The rows [b, ...] of each of `tensors` [c, ...], as many at a time as `block` holds."""
        yield from alike(zip(*(torch.split(tensor, len(self.block)) for tensor in tensors), strict=True))

    def product(self, chunk: slice) -> Tensor:
        """hidden @ weight.T of a chunk, [c, V], in the buffer of the logits; the bias is not in it."""
        hidden = self.hidden[chunk]
        logits = self.logits[: len(hidden)]
        torch.mm(hidden, self.weight.T, out=logits)
        return logits

    def add_gradients(self, chunk: slice, logits_grad: Tensor) -> None:
        """Add what follows from the gradient by a chunk's logits, [c, V], for hidden and weight."""
        hidden = self.hidden[chunk]
        if self.hidden_grad is not None:
            torch.mm(logits_grad, self.weight, out=self.hidden_grad[chunk])
        if self.weight_product is not None and self.weight_grad is not None:
            torch.mm(logits_grad.T, hidden, out=self.weight_product)
            self.weight_grad += self.weight_product
        elif self.weight_grad is not None and self.weight_grad.dtype != hidden.dtype:
            torch.addmm(self.weight_grad, logits_grad.T, hidden, out_dtype=self.weight_grad.dtype, out=self.weight_grad)
        elif self.weight_grad is not None:
            self.weight_grad.addmm_(logits_grad.T, hidden)

    def biased(self, logits: Tensor) -> Tensor:
        """`logits` [b, V] and the bias, in `block`."""
        block = self.block[: len(logits)].copy_(logits)
        return block if self.bias is None else block.add_(self.bias)

    def statistics(self, logits: Tensor, columns: Tensor, own: Tensor) -> Tensor:
        """[c, 4] fp64 of a chunk's logits [c, V]: maximum, sum of exponentials below it, logit at `columns` [c, 1] where
        it is `own` [c, 1], sum of distances from the maximum."""
        found = logits.new_empty(len(logits), 4, dtype=torch.float64)
        for *block, rows in self.blocks(logits, columns, own, found):
            rows.copy_(self._statistics(*block))
        return found

    def _statistics(self, logits: Tensor, column: Tensor, own: Tensor) -> Tensor:
        block = self.biased(logits)
        largest = block.amax(1, keepdim=True)
        at_target = block.gather(1, column).masked_fill_(~own, 0.0)
        distance = block.sub_(largest).sum(1, keepdim=True)
        total = block.exp_().sum(1, keepdim=True)
        return torch.cat([largest, total, at_target, distance], dim=1)

    def subtract_target(self, block: Tensor, column: Tensor, at_target: Tensor | float, everywhere: float) -> None:
        """From probabilities to the gradient by the logits, in place; and add it to the bias's."""
        if everywhere:
            block.sub_(everywhere / (block.shape[1] if self.part is None else self.part.total))
        block.scatter_(1, column, block.gather(1, column) - at_target)
        if self.bias_grad is not None:
            self.bias_grad += block.sum(0)
