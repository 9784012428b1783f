"""The judge: plain PyTorch, one process, no DeepSpeed and none of the toolkit's engine, loss or schedule.

It takes the same weights and the same global batches and does what the textbook says: mean cross-entropy over the
valid tokens of the global batch, gradient clipping by global norm, the optimizer's own class, fp32 master weights
for 16-bit models. Only data preparation is shared, because which tokens make up step N is not under test here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from toolkit.models.dtypes import DTYPES

Batch = dict[str, torch.Tensor]


BESIDE_TOKENS = ("targets", "target_rows", "document_lengths", "real_tokens")
"""Entries of a micro-batch of a language model that it is not called with."""

ROUNDING = 1e-6
"""Of the norm of all gradients."""


@dataclass
class Curve:
    """What one run did, per step, and what it ended with."""

    losses: list[float] = field(default_factory=list)
    """Mean over the targets of the global batch."""
    norms: list[float] = field(default_factory=list)
    """L2 norm of the gradient before clipping."""
    rates: list[float] = field(default_factory=list)
    """Learning rate used."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """fp32, by parameter name."""
    shares: dict[str, float] = field(default_factory=dict)
    """Largest norm of each parameter's gradient in any step, as a share of that of all; below ROUNDING it is zero but for
    rounding (a bias that a softmax takes away), which Adam makes whole steps of."""


def token_losses(model: nn.Module, batch: dict[str, torch.Tensor], label_smoothing: float = 0.0) -> torch.Tensor:
    """Sum of the losses of one micro-batch from the model's own full logits, 0-dim fp64.

    `batch` is a micro-batch of causal language modelling (input_ids, position_ids, targets [B, T], shifted; with what a
    vision-language model takes of images) or of
    sequence classification (input_ids, attention_mask [B, T], labels [B]). The loss is taken in fp64: on a CPU torch's
    fp32 softmax over 49,152 logits gives probabilities that add up to 1 + 8e-6, which moves a loss by 2e-6 of itself
    and some gradients by 2e-4 of their norm.
    """
    if "targets" in batch:
        given = {name: values for name, values in batch.items() if name not in BESIDE_TOKENS}
        logits = model(**given, use_cache=False).logits
        return nn.functional.cross_entropy(
            logits.double().flatten(0, 1), batch["targets"].flatten(), reduction="sum", label_smoothing=label_smoothing
        )
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(
        logits.double(), batch["labels"], reduction="sum", label_smoothing=label_smoothing
    )


def num_targets(batch: dict[str, torch.Tensor]) -> int:
    """Targets of one micro-batch."""
    return int((batch["targets"] if "targets" in batch else batch["labels"]).ne(-100).sum())


class Judge(Protocol):
    """The losses of a task, of batches as the task's collate made them."""

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Look at a global batch before it is trained."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Sum over the targets of a micro-batch, 0-dim fp64."""
        ...

    def count(self, batch: Batch) -> int:
        """Targets of a micro-batch."""
        ...


@dataclass(frozen=True)
class TokenJudge:
    """Tokens that are predicted, and classes of texts."""

    label_smoothing: float = 0.0

    def begin(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Nothing to look at."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """See `token_losses`."""
        return token_losses(model, batch, self.label_smoothing)

    def count(self, batch: Batch) -> int:
        """See `num_targets`."""
        return num_targets(batch)


def parameter_groups(
    model: nn.Module, parameters: dict[str, torch.Tensor], weight_decay: float
) -> list[dict[str, Any]]:
    """Hidden matrices; embeddings and what is outside of the base model; vectors, which are not decayed.

    `parameters` are the tensors to be optimized, by their name in `model`.
    """
    base = getattr(model, "base_model", model)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    modules = [*embeddings, *[child for child in model.children() if child is not base]]
    ends = {id(weight) for module in modules for weight in module.parameters()}
    named = dict(model.named_parameters())
    matrices = [name for name in parameters if named[name].dim() >= 2]
    hidden = [name for name in matrices if id(named[name]) not in ends]
    groups = {
        "hidden": (hidden, weight_decay),
        "ends": ([name for name in matrices if name not in hidden], weight_decay),
        "vectors": ([name for name in parameters if name not in matrices], 0.0),
    }
    return [
        {"params": [parameters[name] for name in names], "weight_decay": decay, "role": role}
        for role, (names, decay) in groups.items()
        if names
    ]


def train(
    model: nn.Module,
    steps: Sequence[Sequence[dict[str, torch.Tensor]]],
    build_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    rate: Callable[[int], float],
    *,
    dtype: str = "fp32",
    master_dtype: str = "fp32",
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.0,
    judge: Callable[[nn.Module], Judge] = lambda _: TokenJudge(),
) -> Curve:
    """Train on `steps`, each a list of micro-batches that together are one global batch.

    `judge` makes the task's losses from the model before any step, in `dtype`.

    `build_optimizer` gets `parameter_groups` of the master weights, in `master_dtype`, `rate` the 0-based step.
    `max_grad_norm` 0: never clip.
    """
    model.train()
    named = _trained(model)
    masters = {
        name: parameter.detach().to(DTYPES[master_dtype]).clone().requires_grad_() for name, parameter in named.items()
    }
    for parameter in model.parameters():
        # Parameters only: rotary frequencies and the like are buffers, which stay in fp32.
        parameter.data = parameter.data.to(DTYPES[dtype])
    optimizer = build_optimizer(parameter_groups(model, dict(masters), weight_decay))
    curve, losses = Curve(), judge(model)
    for index, micro_batches in enumerate(steps):
        loss, sums = _gradients(model, micro_batches, losses)
        norm = _norm(sums.values())
        clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm else 1.0
        for name, gradient in sums.items():
            curve.shares[name] = max(curve.shares.get(name, 0.0), _norm([gradient]) / max(norm, 1e-30))
        for name, master in masters.items():
            # Rounded first: the optimizer never sees more of a gradient than its own format holds.
            master.grad = sums[name].to(master.dtype).mul_(clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(index)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(masters[name])
        curve.losses.append(loss)
        curve.norms.append(norm)
        curve.rates.append(rate(index))
    curve.weights = {name: master.detach().float() for name, master in masters.items()}
    return curve


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _norm(gradients: Iterable[torch.Tensor]) -> float:
    """L2 norm of all of them. In fp64: on a CPU torch sums a tensor's squares in fp32, where small ones are lost beside
    the sum (2e-3 of the norm of 28 million values of very different size, such as an embedding's gradient)."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _gradients(model: nn.Module, micro_batches: Sequence[Batch], judge: Judge) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over the targets of the global batch, and its gradient by parameter name, summed in fp32."""
    named = _trained(model)
    total = sum(judge.count(batch) for batch in micro_batches)
    judge.begin(model, micro_batches)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in named.items()}
    loss_sum = 0.0
    for batch in micro_batches:
        loss = judge.loss(model, batch)
        loss_sum += float(loss.detach())
        torch.autograd.backward(loss / total)
        for name, parameter in named.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad.float()
                parameter.grad = None
    return loss_sum / total, sums
