"""The language-model head and its loss in one step, without the tokens x vocabulary matrix of logits.

Gradients are finished chunk by chunk in the forward pass, as in Liger's fused linear cross entropy (Hsu et al. 2024,
arXiv 2410.10989, section 3.2), so the logits of a chunk are computed once, used and overwritten. Nothing that the
backward pass needs refers to the weight: ZeRO-3 may free it right after the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from toolkit.models.alike import alike
from toolkit.models.head_chunks import HeadChunks, as_autocast, default_chunk, valid_rows
from toolkit.models.vocabulary import VocabularyPart

PROMISED = 1e-5
"""Largest relative difference of the backward pass's factor from a promised one: two orders of fp32 products."""


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
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    tokens = chunk_tokens or default_chunk(weight)
    with torch.autocast(hidden.device.type, enabled=False):
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
        rows = valid_rows(targets) if rows is None else rows
        rows = None if rows is None or len(rows) == len(targets) else rows
        kept, kept_targets = (hidden, targets) if rows is None else (hidden[rows], targets[rows])
        head = _Head.create(kept, weight, bias, needs, chunk_tokens, part)
        for chunk in head.slices():
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


def _is_another(factor: Tensor, is_promised: bool) -> bool:
    """Whether gradients have to be multiplied by `factor`, as far as that can be known without a wait."""
    if isinstance(factor, FakeTensor):
        return True
    if factor.device.type == "cpu":
        return factor.item() != 1.0
    if is_promised:
        torch._assert_async((factor - 1.0).abs() < PROMISED, "the gradient's factor is not the promised gradient_scale")
    return not is_promised


def _scale(gradient: Tensor, factor: Tensor) -> None:
    """Multiply in place. 16-bit gradients pass through fp32, since the factor itself may not fit their format."""
    if gradient.element_size() >= 4:
        gradient.mul_(factor)
        return
    for part in alike(torch.split(gradient, 4096)):
        part.copy_(part.float().mul_(factor))


@dataclass
class _Head(HeadChunks):
    """Chunks of the head, and the sum of their losses."""

    loss: Tensor = field(init=False)  # 0-dim fp64

    def __post_init__(self) -> None:
        # Kept in fp64: a block is a few rows on a CPU, and the result must not depend on how many there are.
        self.loss = self.hidden.new_zeros((), dtype=torch.float64)

    def add(self, chunk: slice, targets: Tensor, smoothing: float, gradient_scale: float) -> None:
        """Add the loss of one chunk of tokens and, where gradients are wanted, its share of them."""
        logits = self.product(chunk)
        scale = gradient_scale if self.wants_gradients else None
        if self.part is not None:
            self._add_shared_loss(logits, targets, smoothing, scale, self.part)
        else:
            for rows, column in self.blocks(logits, targets.unsqueeze(1)):
                self._add_loss(rows, column, smoothing, scale)
        if scale is not None:
            self.add_gradients(chunk, logits)

    def _add_loss(self, logits: Tensor, column: Tensor, smoothing: float, gradient_scale: float | None) -> None:
        """Add the loss of a block; with a scale, `logits` [b, V] becomes the scaled gradient of the loss by them.

        column [b, 1] is the target of each row. Each pass works in place on `block`, which fits a CPU's cache:
        x - max, exp, times scale / sum, minus scale at the target.
        """
        block = self.biased(logits)
        block.sub_(block.amax(1, keepdim=True))
        at_target = block.gather(1, column)
        mean = block.mean(1, keepdim=True) if smoothing else at_target
        total = block.exp_().sum(1, keepdim=True)
        self.loss += (total.log() - (1.0 - smoothing) * at_target - smoothing * mean).sum(dtype=torch.float64)
        if gradient_scale is not None:
            block.mul_(gradient_scale / total)
            self.subtract_target(block, column, gradient_scale * (1.0 - smoothing), gradient_scale * smoothing)
            logits.copy_(block)

    def _add_shared_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, gradient_scale: float | None, part: VocabularyPart
    ) -> None:
        """As `_add_loss` for a whole chunk [c, V/P], whose softmax needs what the other ranks have.

        Every rank's maximum, sum of exponentials, logit at the target (0 where it is another's) and sum of the logits
        are gathered once; exponentials are then taken again, from the maximum of all.
        """
        columns, own = part.local(targets.unsqueeze(1))
        found = part.gather(self.statistics(logits, columns, own))
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
        most = largest.to(dtype).unsqueeze(1)
        for rows, column, highest, scale, at in self.blocks(logits, columns, most, scales, at_targets):
            block = self.biased(rows).sub_(highest).exp_().mul_(scale)
            self.subtract_target(block, column, at, everywhere)
            rows.copy_(block)
