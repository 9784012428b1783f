"""Sequence parallelism of stock models: every architecture in halves against its own whole model."""

from __future__ import annotations

import copy
from typing import Any

import deepspeed.comm as dist
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures import VOCABULARY, tiny_config
from tests.distributed import run_distributed
from toolkit.engine.sequence import (
    SequenceAttention,
    check_sequence_attention,
    check_sequence_parallel,
    use_sequence_attention,
)
from toolkit.errors import ModelError
from toolkit.models.heads import token_loss, use_loss_head

Case = tuple[str, dict[str, Any]]
"""model_type, and changes to its tiny config."""

LONGEST = 64


def whole_batch() -> dict[str, torch.Tensor]:
    """Two rows of 16 tokens, each of packed documents; targets with gaps."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(3, VOCABULARY, (2, 2, 16), generator=generator)
    positions = torch.tensor([[*range(7), *range(9)], [*range(12), *range(4)]])
    targets[0, 6] = targets[1, 11] = -100
    return {"input_ids": tokens, "position_ids": positions, "targets": targets}


def build(case: Case) -> nn.Module:
    """The whole model in fp32; no weight is left at zero or one, where a fault could hide."""
    kind, changes = case
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=torch.float32).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.05))
    return model


def loss_and_gradients(
    model: nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    use_loss_head(model)
    inputs = {name: value for name, value in batch.items() if name != "targets"}
    loss = token_loss(model, inputs, batch["targets"], label_smoothing=0.0, gradient_scale=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def deviation(whole: nn.Module, rank: int, world_size: int) -> float:
    """Largest relative difference of the loss and of any parameter's gradient, summed over the parts."""
    group = dist.get_world_group()
    part = copy.deepcopy(whole)
    check_sequence_parallel(part.config, "sdpa", world_size)
    attention = SequenceAttention(part.config, "sdpa", group)
    part.eval()
    with torch.no_grad():
        excess = use_sequence_attention(part, attention, LONGEST)
    check_sequence_attention(excess, type(part).__name__)
    part.train()
    batch = whole_batch()
    wanted_loss, wanted = loss_and_gradients(whole, batch)
    size = batch["input_ids"].shape[1] // world_size
    mine = {name: value[:, rank * size : (rank + 1) * size] for name, value in batch.items()}
    loss, found = loss_and_gradients(part, mine)
    assert wanted.keys() == found.keys()
    for tensor in (loss, *found.values()):
        dist.all_reduce(tensor)
    worst = abs(float(loss - wanted_loss)) / abs(float(wanted_loss))
    floor = 1e-3 * float(torch.nn.utils.get_total_norm(list(wanted.values())))
    for name, gradient in wanted.items():
        worst = max(worst, float((found[name] - gradient).norm()) / (float(gradient.norm()) + floor))
    return worst


def walk(rank: int, world_size: int, cases: dict[str, Case]) -> dict[str, float | str]:
    """Deviation of each case, or why it is refused."""
    results: dict[str, float | str] = {}
    for name, case in cases.items():
        try:
            results[name] = deviation(build(case), rank, world_size)
        except ModelError as error:
            results[name] = error.what
        except Exception as e:
            results[name] = f"!!! {type(e)} {e}"[:200]
    return results


if __name__ == "__main__":
    import sys

    kinds = sys.argv[2:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for out in run_distributed(walk, int(sys.argv[1]), {k: (k, {}) for k in kinds}, timeout_s=1500)[:1]:
        for k, v in out.items():
            print(k, v if isinstance(v, str) else f"{v:.1e}")
