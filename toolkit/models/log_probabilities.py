"""Log-probabilities of target tokens, one per token and with gradients, without the tokens x vocabulary matrix of logits;
and their sums over documents.

Losses that compare whole answers (DPO and its relatives) weigh every token by something known only once all tokens of a
pair are summed. So, unlike in `cross_entropy`, the backward pass computes each chunk's logits once more: from the log of
the softmax's sum, which is kept, one number per token. The weight is looked at in both passes; ZeRO-3 gathers it for each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolkit.models.head_chunks import HeadChunks, as_autocast, default_chunk
from toolkit.models.vocabulary import VocabularyPart


def linear_log_probabilities(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk_tokens: int | None = None,
    part: VocabularyPart | None = None,
) -> Tensor:
    """log softmax(hidden @ weight.T + bias) at the targets: [M] fp32 (float64 for float64 inputs).

    hidden [M, D], weight [V, D], bias [V] or None, targets [M] int64, each a token: positions without a target are left
    out before. With `part`, weight [V/P, D] and bias [V/P] are this rank's rows of a vocabulary that P ranks share, as in
    `cross_entropy.linear_cross_entropy`: every rank gets the same log-probabilities, must hand back the same gradient of
    them, and gets the complete gradient of hidden.
    """
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    with torch.autocast(hidden.device.type, enabled=False):
        settings = (chunk_tokens or default_chunk(weight), part)
        found: Tensor = _LinearLogProbabilities.apply(hidden, weight, bias, targets, settings)  # type: ignore[no-untyped-call]
    return found


class _LinearLogProbabilities(torch.autograd.Function):
    """Forward keeps the log of each token's sum of exponentials; backward computes the probabilities again from it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: tuple[int, VocabularyPart | None],
    ) -> Tensor:
        chunk_tokens, part = settings
        head = HeadChunks.create(hidden, weight, bias, [False, False, False], chunk_tokens, part)
        found = hidden.new_empty(len(hidden), dtype=head.block.dtype)
        log_totals = torch.empty_like(found)
        for chunk in head.slices():
            log_total, at_target = _log_softmax_terms(head, head.product(chunk), targets[chunk])
            log_totals[chunk] = log_total
            found[chunk] = at_target - log_total
        ctx.settings = settings
        ctx.save_for_backward(hidden, weight, bias, targets, log_totals)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_totals = ctx.saved_tensors
        chunk_tokens, part = ctx.settings
        head = HeadChunks.create(hidden, weight, bias, list(ctx.needs_input_grad[:3]), chunk_tokens, part)
        for chunk in head.slices():
            logits = head.product(chunk)
            _become_gradient(head, logits, targets[chunk], log_totals[chunk], grad_output[chunk])
            head.add_gradients(chunk, logits)
        if head.hidden_grad is not None and part is not None:
            # Each rank has the terms of its own logits.
            part.sum_(head.hidden_grad)
        return (
            head.hidden_grad,
            None if head.weight_grad is None else head.weight_grad.to(weight.dtype),
            None if head.bias_grad is None else head.bias_grad.to(bias.dtype),
            None,
            None,
        )


def _log_softmax_terms(head: HeadChunks, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials over the whole vocabulary, and the logit at the target; [c] fp64 each."""
    columns, own = _own_columns(head, targets)
    found = head.statistics(logits, columns, own)
    by_rank = found.unsqueeze(0) if head.part is None else head.part.gather(found)
    largest = by_rank[..., 0].amax(0)
    total = (by_rank[..., 1] * (by_rank[..., 0] - largest).exp()).sum(0)
    return largest + total.log(), by_rank[..., 2].sum(0)


def _become_gradient(head: HeadChunks, logits: Tensor, targets: Tensor, log_totals: Tensor, weights: Tensor) -> None:
    """From logits [c, V] to the gradient by them of sum(weights x log-probabilities), in place: weights x (1 - p) at the
    target, -weights x p elsewhere."""
    columns, own = _own_columns(head, targets)
    weights = -weights.to(head.block.dtype).unsqueeze(1)
    tensors = (logits, columns, own * weights, log_totals.unsqueeze(1), weights)
    for rows, column, at_target, log_total, weight in head.blocks(*tensors):
        block = head.biased(rows).sub_(log_total).exp_().mul_(weight)
        head.subtract_target(block, column, at_target, 0.0)
        rows.copy_(block)


def _own_columns(head: HeadChunks, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where this rank's logits have the targets, and for which it does; [c, 1] each."""
    columns = targets.unsqueeze(1)
    return (columns, torch.ones_like(columns, dtype=torch.bool)) if head.part is None else head.part.local(columns)


def segment_sum(values: Tensor, segments: Tensor, count: int, group: Any = None) -> Tensor:
    """Sums of values [M] over equal `segments` [M] (int64 in [0, count)): [count] fp64.

    In fp64, since losses look at small differences of large sums. With `group`, whose ranks hold other tokens of the same
    documents, sums are over all of them; a rank's gradient is then that of the sum of all ranks' losses.
    """
    sums = torch.zeros(count, dtype=torch.float64, device=values.device).index_add(0, segments, values.double())
    if group is None:
        return sums
    shared: Tensor = _SumOverRanks.apply(sums, group)  # type: ignore[no-untyped-call]
    return shared


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks of a group; backward too: what a rank adds acts on the loss of each of them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(values, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return _summed(grad_output, ctx.group), None


def _summed(values: Tensor, group: Any) -> Tensor:
    found = values.clone()
    dist.all_reduce(found, group=group)
    return found
