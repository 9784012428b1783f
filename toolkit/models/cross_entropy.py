"""The language-model head and its loss in one step, without the tokens x vocabulary matrix of logits.

Gradients are finished chunk by chunk in the forward pass, as in Liger's fused linear cross entropy (Hsu et al. 2024,
arXiv 2410.10989, section 3.2), so the logits of a chunk are computed once, used and overwritten. Nothing that the
backward pass needs refers to the weight: ZeRO-3 may free it right after the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from toolkit.models.vocabulary import VocabularyPart

IGNORED = -100
"""Target of a position without loss, as in torch.nn.functional.cross_entropy."""

CHUNK_BYTES = 128 * 2**20
"""Size of a chunk of logits, in the inputs' number format, unless `chunk_tokens` says otherwise. On a CPU 64 MiB is slower."""

LEAST_TOKENS = {"cuda": 2048}
"""Smallest chunk chosen by default, by device (256 elsewhere): below it, adding each chunk's [V, D] gradient costs more
than computing it. A GPU adds slowly for how fast it multiplies."""

PROMISED = 1e-5
"""Largest relative difference of the backward pass's factor from a promised one: two orders of fp32 products."""

BLOCK_BYTES = {"cpu": 4 * 2**20}
"""Size of the fp32 rows whose softmax is taken at a time, by device (CHUNK_BYTES elsewhere): they should fit a cache."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
    chunk_tokens: int | None = None,
    part: VocabularyPart | None = None,
    is_promised: bool = False,
) -> Tensor:
    """Sum of the token losses of `hidden @ weight.T + bias`, a 0-dim fp32 tensor (float64 for float64 inputs).

    hidden [N, D], weight [V, D], bias [V] or None, targets [N] int64 with -100 for positions without loss; those cost
    nothing. `rows` are the indices of the others, [M]; where not given they are looked for, which waits for the device.
    `gradient_scale` is the factor by which the backward pass will scale the sum (loss scale / tokens): it is
    applied in fp32 before gradients are cast to 16 bits, since softmax gradients underflow in fp16 without it. Any
    other factor stays correct, only less precise, unless `is_promised`: a GPU then leaves the gradients as they are,
    since it could not look at the factor without a wait, and fails (device-side assert) where it is another one. The
    backward pass may run once.

    With `part`, weight [V/P, D] and bias [V/P] are this rank's rows of a vocabulary that P ranks share (Shoeybi et al.
    2019, arXiv 1909.08053, section 3): all of them call with the same hidden and targets and get the same loss and the
    same, complete gradient of hidden. Of each chunk four numbers per token travel, not its logits.
    """
    if not 0.0 <= label_smoothing < 1.0 or not 0.0 < gradient_scale < float("inf"):
        raise ValueError(
            f"label_smoothing={label_smoothing} must be in [0, 1), gradient_scale={gradient_scale} finite, above 0"
        )
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    tokens = chunk_tokens or max(
        LEAST_TOKENS.get(device, 256), CHUNK_BYTES // (weight.element_size() * weight.shape[0])
    )
    with torch.autocast(device, enabled=False):
        settings = (label_smoothing, gradient_scale, tokens, torch.is_grad_enabled(), part, is_promised)
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, rows, settings)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and the gradients times `gradient_scale`; backward corrects the factor."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: Tensor | None,
        settings: tuple[float, float, int, bool, VocabularyPart | None, bool],
    ) -> Tensor:
        smoothing, ctx.gradient_scale, chunk_tokens, grad_enabled, part, ctx.is_promised = settings
        needs = [needed and grad_enabled for needed in ctx.needs_input_grad[:3]]
        rows = _valid_rows(targets) if rows is None else rows
        rows = None if rows is None or len(rows) == len(targets) else rows
        kept, kept_targets = (hidden, targets) if rows is None else (hidden[rows], targets[rows])
        head = _Head.create(kept, weight, bias, needs, chunk_tokens, part)
        for start in range(0, len(kept), head.chunk_tokens):
            chunk = slice(start, start + head.chunk_tokens)
            head.add(chunk, kept_targets[chunk], smoothing, ctx.gradient_scale)
        hidden_grad = head.hidden_grad
        if hidden_grad is not None and part is not None:
            # Each rank has the terms of its own logits.
            part.sum_(hidden_grad)
        if hidden_grad is not None and rows is not None:
            hidden_grad = torch.zeros_like(hidden).index_copy_(0, rows, hidden_grad)
        ctx.save_for_backward(
            hidden_grad,
            None if head.weight_grad is None else head.weight_grad.to(weight.dtype),
            None if head.bias_grad is None or bias is None else head.bias_grad.to(bias.dtype),
        )
        return head.loss.to(torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors
        factor = grad_output / ctx.gradient_scale
        if _is_another(factor, ctx.is_promised):
            for gradient in gradients:
                if gradient is not None:
                    _scale(gradient, factor)
        return (*gradients, None, None, None)


def _valid_rows(targets: Tensor) -> Tensor | None:
    """Indices of the positions with loss; None: all of them."""
    if isinstance(targets, FakeTensor):
        return None  # A memory trace has no values: take the case that needs most.
    return (targets != IGNORED).nonzero().squeeze(1)


def _is_another(factor: Tensor, is_promised: bool) -> bool:
    """Whether gradients have to be multiplied by `factor`, as far as that can be known without a wait."""
    if isinstance(factor, FakeTensor):
        return True
    if factor.device.type == "cpu":
        return factor.item() != 1.0
    if is_promised:
        torch._assert_async((factor - 1.0).abs() < PROMISED, "the gradient's factor is not the promised gradient_scale")
    return not is_promised


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


def _scale(gradient: Tensor, factor: Tensor) -> None:
    """Multiply in place. 16-bit gradients pass through fp32, since the factor itself may not fit their format."""
    if gradient.element_size() >= 4:
        gradient.mul_(factor)
        return
    for part in torch.split(gradient, 4096):
        part.copy_(part.float().mul_(factor))


@dataclass
class _Head:
    """Inputs, buffers that every chunk reuses, and what has been summed so far. C is tokens per chunk."""

    hidden: Tensor  # [N, D], positions with loss only
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    chunk_tokens: int  # C
    logits: Tensor  # [C, V] in the inputs' type; becomes the gradient with respect to the logits
    block: Tensor  # [B, V] fp32 (float64 for float64 inputs): the rows whose softmax is being computed
    loss: Tensor  # 0-dim fp64
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
    ) -> _Head:
        """Buffers for `hidden`, cut into equal chunks of at most `chunk_tokens`; `needs` as in ctx.needs_input_grad."""
        count = -(-len(hidden) // chunk_tokens)
        size = min(len(hidden), -(-len(hidden) // max(1, count)))
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # The sum is kept in fp64: a block is a few rows on a CPU, and the result must not depend on how many there are.
        block = max(1, min(size, BLOCK_BYTES.get(hidden.device.type, CHUNK_BYTES) // (4 * len(weight))))
        summed = dtype if count > 1 else weight.dtype
        is_apart = summed != weight.dtype and not _adds_in_fp32(hidden.device, hidden.dtype)
        return cls(
            hidden=hidden,
            weight=weight,
            bias=bias,
            chunk_tokens=max(1, size),
            logits=hidden.new_empty(size, len(weight)),
            block=hidden.new_empty(block, len(weight), dtype=dtype),
            loss=hidden.new_zeros((), dtype=torch.float64),
            hidden_grad=torch.empty_like(hidden) if needs[0] else None,
            weight_grad=torch.zeros_like(weight, dtype=summed) if needs[1] else None,
            weight_product=torch.empty_like(weight) if needs[1] and is_apart else None,
            bias_grad=torch.zeros_like(bias, dtype=dtype) if needs[2] and bias is not None else None,
            part=part,
        )

    def add(self, chunk: slice, targets: Tensor, smoothing: float, gradient_scale: float) -> None:
        """Add the loss of one chunk of tokens and, where gradients are wanted, its share of them."""
        hidden = self.hidden[chunk]
        logits = self.logits[: len(hidden)]
        torch.mm(hidden, self.weight.T, out=logits)
        with_gradients = any(grad is not None for grad in (self.hidden_grad, self.weight_grad, self.bias_grad))
        scale = gradient_scale if with_gradients else None
        if self.part is not None:
            self._add_shared_loss(logits, targets, smoothing, scale, self.part)
        else:
            size = len(self.block)
            for rows, columns in zip(torch.split(logits, size), torch.split(targets, size), strict=True):
                self._add_loss(rows, columns.unsqueeze(1), smoothing, scale)
        if self.hidden_grad is not None:
            torch.mm(logits, self.weight, out=self.hidden_grad[chunk])
        if self.weight_product is not None and self.weight_grad is not None:
            torch.mm(logits.T, hidden, out=self.weight_product)
            self.weight_grad += self.weight_product
        elif self.weight_grad is not None and self.weight_grad.dtype != hidden.dtype:
            torch.addmm(self.weight_grad, logits.T, hidden, out_dtype=self.weight_grad.dtype, out=self.weight_grad)
        elif self.weight_grad is not None:
            self.weight_grad.addmm_(logits.T, hidden)

    def _add_loss(self, logits: Tensor, column: Tensor, smoothing: float, gradient_scale: float | None) -> None:
        """Add the loss of a block; with a scale, `logits` [b, V] becomes the scaled gradient of the loss by them.

        column [b, 1] is the target of each row. Each pass works in place on `block`, which fits a CPU's cache:
        x - max, exp, times scale / sum, minus scale at the target.
        """
        block = self._logits_of(logits)
        block.sub_(block.amax(1, keepdim=True))
        at_target = block.gather(1, column)
        mean = block.mean(1, keepdim=True) if smoothing else at_target
        total = block.exp_().sum(1, keepdim=True)
        self.loss += (total.log() - (1.0 - smoothing) * at_target - smoothing * mean).sum(dtype=torch.float64)
        if gradient_scale is not None:
            block.mul_(gradient_scale / total)
            self._subtract_target(block, column, gradient_scale * (1.0 - smoothing), gradient_scale * smoothing)
            logits.copy_(block)

    def _add_shared_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, gradient_scale: float | None, part: VocabularyPart
    ) -> None:
        """As `_add_loss` for a whole chunk [c, V/P], whose softmax needs what the other ranks have.

        Every rank's maximum, sum of exponentials, logit at the target (0 where it is another's) and sum of the logits
        are gathered once; exponentials are then taken again, from the maximum of all.
        """
        columns, own = part.local(targets.unsqueeze(1))
        pieces = [torch.split(tensor, len(self.block)) for tensor in (logits, columns, own)]
        found = part.gather(torch.cat([self._statistics(*piece) for piece in zip(*pieces, strict=True)]))
        above = found[..., 0] - found[..., 0].amax(0)  # [P, c], of each rank's maximum over all ranks', at most 0
        largest = found[..., 0].amax(0)
        total = (found[..., 1] * above.exp()).sum(0)
        at_target = found[..., 2].sum(0) - largest
        widths = found.new_tensor(part.sizes).unsqueeze(1)
        mean = (found[..., 3] + widths * above).sum(0) / part.total
        self.loss += (total.log() - (1.0 - smoothing) * at_target - smoothing * mean).sum()
        if gradient_scale is None:
            return
        dtype = self.block.dtype
        scales = (gradient_scale / total).to(dtype).unsqueeze(1)
        at_targets = own.to(dtype).mul_(gradient_scale * (1.0 - smoothing))
        everywhere = gradient_scale * smoothing
        for rows, column, most, scale, at in zip(
            *(
                torch.split(t, len(self.block))
                for t in (logits, columns, largest.to(dtype).unsqueeze(1), scales, at_targets)
            ),
            strict=True,
        ):
            block = self._logits_of(rows).sub_(most).exp_().mul_(scale)
            self._subtract_target(block, column, at, everywhere)
            rows.copy_(block)

    def _logits_of(self, logits: Tensor) -> Tensor:
        """`logits` [b, V] and the bias, in `block`."""
        block = self.block[: len(logits)].copy_(logits)
        return block if self.bias is None else block.add_(self.bias)

    def _statistics(self, logits: Tensor, column: Tensor, own: Tensor) -> Tensor:
        """[b, 4] fp64: maximum, sum of exponentials below it, logit at `column` where it is `own`, sum of distances from
        the maximum."""
        block = self._logits_of(logits)
        largest = block.amax(1, keepdim=True)
        at_target = block.gather(1, column).masked_fill_(~own, 0.0)
        distance = block.sub_(largest).sum(1, keepdim=True)
        total = block.exp_().sum(1, keepdim=True)
        return torch.cat([largest, total, at_target, distance], dim=1).double()

    def _subtract_target(self, block: Tensor, column: Tensor, at_target: Tensor | float, everywhere: float) -> None:
        """From probabilities to the gradient by the logits, in place; and add it to the bias's."""
        if everywhere:
            block.sub_(everywhere / (block.shape[1] if self.part is None else self.part.total))
        block.scatter_(1, column, block.gather(1, column) - at_target)
        if self.bias_grad is not None:
            self.bias_grad += block.sum(0)
