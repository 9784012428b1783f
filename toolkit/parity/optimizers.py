"""The judge's optimizers: torch's own class for each of the recipe's, and the paper where torch has none."""

from __future__ import annotations

from typing import Any

import torch

from toolkit.recipe import Optimizer
from toolkit.recipe.optimizers import optimizer_parameters

Groups = list[dict[str, Any]]


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675, algorithm 2; torch has no Lion."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                moment = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                direction = (moment * first + parameter.grad * (1 - first)).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                moment.mul_(second).add_(parameter.grad, alpha=1 - second)


class MuonWithAdam(torch.optim.Optimizer):
    """torch.optim.Muon for the hidden matrices, AdamW for embeddings, head and vectors; groups carry their "role"."""

    def __init__(self, params: Any, momentum: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": 1.0})
        hidden = [_plain(group) for group in self.param_groups if group["role"] == "hidden"]
        others = [_plain(group) for group in self.param_groups if group["role"] != "hidden"]
        self.parts = [
            torch.optim.Muon(
                [parameter for group in hidden for parameter in group["params"]],
                lr=1.0,
                weight_decay=hidden[0]["weight_decay"],
                momentum=momentum,
            ),
            torch.optim.AdamW(others, lr=1.0, betas=betas, eps=eps),
        ]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of both."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {"params": group["params"], "weight_decay": group["weight_decay"]}


def build_optimizer(optimizer: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer of the recipe over `groups`; the learning rate is set at each step."""
    kind = optimizer.type
    own = optimizer_parameters(kind, optimizer.model_dump())
    if kind == "muon":
        return MuonWithAdam(groups, momentum=own["momentum"], betas=own["betas"], eps=own["eps"])
    if kind == "lion":
        return Lion(groups, lr=1.0, betas=own["betas"])
    names = {
        "sgd": "SGD",
        "sgd_momentum": "SGD",
        "adagrad": "Adagrad",
        "rmsprop": "RMSprop",
        "adam": "Adam",
        "adamw": "AdamW",
    }
    made: torch.optim.Optimizer = getattr(torch.optim, names[kind])(groups, lr=1.0, **own)
    return made
