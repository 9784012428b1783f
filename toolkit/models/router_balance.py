"""The load-balancing loss of a mixture's routers, as transformers adds it to a causal language model's loss.

It is asked for by the model's config: output_router_logits, with router_aux_loss_coef above 0. What is trained is
token loss + coefficient x transformers' own load_balancing_loss_func (Fedus et al. 2021, arXiv 2101.03961, equations
4-6), taken per micro-batch over its real tokens, each micro-batch weighted by its share of the step's targets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.agreement import vocabulary_size
from toolkit.models.attention_choice import model_class

REAL = "real_tokens"
"""Key of a batch with a balanced model: [B, T], 1 for tokens of examples, 0 for padding."""

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""What architectures call these in their configs."""

PROBE = (2, 16)
"""Sequences and tokens of the comparison with the model's own."""


def coefficient(config: PretrainedConfig) -> float | None:
    """The weight of the balancing loss; None where the config has none."""
    text = config.get_text_config()
    found = [value for name in COEFFICIENTS if (value := getattr(text, name, None)) is not None]
    return float(found[0]) if found else None


def is_asked_for(config: PretrainedConfig) -> bool:
    """Whether the config wants the routers balanced."""
    return bool(getattr(config.get_text_config(), "output_router_logits", False)) and bool(coefficient(config))


def explain_balance(auto_class: Any, config: PretrainedConfig) -> str | None:
    """What is said about the routers of a causal language model; None for a model without experts.

    Raises ModelError where the config asks for a loss that transformers does not have for the architecture.
    """
    text, name = config.get_text_config(), type(config).__name__
    if not any(isinstance(count := getattr(text, key, None), int) and count > 1 for key in EXPERT_COUNTS):
        return None
    weight = coefficient(config)
    if _function(model_class(auto_class, config)) is None or weight is None:
        if getattr(text, "output_router_logits", False):
            raise ModelError(
                f"output_router_logits=True in the model's config: transformers has no balancing loss for {name}",
                expected="False: nothing would come of it",
                do="set model.config={'output_router_logits': False}",
            )
        return f"experts: no balancing loss is trained; transformers has none for {name}"
    if is_asked_for(config):
        return f"experts: the routers' balancing loss is trained too, x {weight:g} (aux_loss in metrics.jsonl)"
    fields = {"output_router_logits": True} | ({} if weight else {"router_aux_loss_coef": 0.01})
    return f"experts: no balancing loss is trained, as the model's config says; model.config={fields} adds it"


def _function(network: type) -> Callable[..., Any] | None:
    module = sys.modules.get(network.__module__)
    return getattr(module, "load_balancing_loss_func", None)


class RouterBalance:
    """The balancing loss of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._function = _function(type(model))
        self._coefficient = coefficient(model.config)

    def added(self, model: Any, router_logits: tuple[torch.Tensor, ...], real: torch.Tensor, targets: int) -> Any:
        """What to add to the summed loss of `targets` targets; router_logits [B x T, experts] of each layer, real [B, T]."""
        if not targets:
            return 0.0
        assert self._function is not None and self._coefficient is not None, "checked when the config was read"
        loss = self._function(router_logits, model.num_experts, model.num_experts_per_tok, real)
        return self._coefficient * targets * loss


def balance_excess(model: nn.Module) -> float:
    """Distance of our balancing loss from the model's own on tokens without padding, relative to it."""
    balance, any_model = RouterBalance(model), model
    device = next(model.parameters()).device
    tokens = (torch.arange(PROBE[0] * PROBE[1], device=device) * 7 + 1).view(PROBE) % vocabulary_size(model)
    outputs: Any = any_model(input_ids=tokens, use_cache=False, output_router_logits=True)
    if getattr(outputs, "aux_loss", None) is None or not hasattr(model, "num_experts_per_tok"):
        return float("inf")
    found = balance.added(model, outputs.router_logits, torch.ones_like(tokens), 1)
    own = float(outputs.aux_loss) * float(coefficient(model.config) or 0.0)
    return abs(float(found) - own) / abs(own)


def check_balance(excess: float, architecture: str) -> None:
    """Raise ModelError when the loss that would be added is not the model's own."""
    if not excess < 1e-3:
        raise ModelError(
            f"output_router_logits=True in the model's config: {architecture} balances its routers in its own way",
            expected="transformers' load_balancing_loss_func over num_experts and num_experts_per_tok",
            do="set model.config={'output_router_logits': False} to train without a balancing loss",
        )
