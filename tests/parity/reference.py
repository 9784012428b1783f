"""The judge: plain PyTorch, one process, no DeepSpeed and none of the toolkit's engine, loss or schedule.

It takes the same weights and the same global batches and does what the textbook says: mean cross-entropy over the
valid tokens of the global batch, gradient clipping by global norm, the optimizer's own class, fp32 master weights
for 16-bit models. Only data preparation is shared, because which tokens make up step N is not under test here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Curve:
    """What one run did, per step, and what it ended with."""

    losses: list[float]
    norms: list[float]
    rates: list[float]
    weights: dict[str, torch.Tensor]


def token_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the losses of one micro-batch from the model's own full logits."""
    if "targets" in batch:
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten(), reduction="sum")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def num_targets(batch: dict[str, torch.Tensor]) -> int:
    """Targets of one micro-batch."""
    return int((batch["targets"] if "targets" in batch else batch["labels"]).ne(-100).sum())


def train(
    model: nn.Module,
    steps: Sequence[Sequence[dict[str, torch.Tensor]]],
    build_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    rate: Callable[[int], float],
    *,
    dtype: str = "fp32",
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.0,
    seeds: Sequence[Sequence[int]] | None = None,
) -> Curve:
    """Train on `steps`, each a list of micro-batches that together are one global batch."""
    model.to(DTYPES[dtype]).train()
    named = dict(model.named_parameters())
    masters = {name: parameter.detach().float().clone().requires_grad_() for name, parameter in named.items()}
    groups: list[dict[str, Any]] = [
        {"params": [masters[name] for name in named if named[name].dim() >= 2], "weight_decay": weight_decay},
        {"params": [masters[name] for name in named if named[name].dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = build_optimizer(groups)
    curve = Curve([], [], [], {})
    for index, micro_batches in enumerate(steps):
        total = sum(num_targets(batch) for batch in micro_batches)
        sums = {name: torch.zeros_like(master) for name, master in masters.items()}
        loss_sum = 0.0
        for place, batch in enumerate(micro_batches):
            if seeds is not None:
                torch.manual_seed(seeds[index][place])
            loss = token_losses(model, batch)
            loss_sum += float(loss.detach())
            (loss / total).backward()
            for name, parameter in named.items():
                sums[name] += parameter.grad.float()
                parameter.grad = None
        for name, master in masters.items():
            master.grad = sums[name]
        norm = torch.nn.utils.get_total_norm(list(sums.values()))
        if max_grad_norm and norm > max_grad_norm:
            for gradient in sums.values():
                gradient.mul_(max_grad_norm / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = rate(index)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(masters[name])
        curve.losses.append(loss_sum / total)
        curve.norms.append(float(norm))
        curve.rates.append(rate(index))
    curve.weights = {name: master.detach() for name, master in masters.items()}
    return curve
