"""The optimizers a recipe can name and the parameters each one has. Torch-free: classes are DeepSpeed's to build.

Defaults are torch.optim's for the classes torch has, and Jordan et al. 2024 (Muon) for the one it has since 2.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from toolkit.errors import RecipeError, did_you_mean

OptimizerType = Literal["sgd", "sgd_momentum", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon"]

COMMON_FIELDS = ("type", "learning_rate", "weight_decay", "max_grad_norm", "ema_decay", "implementation")

DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd_momentum": {"momentum": 0.9, "nesterov": False, "dampening": 0.0},
    "adagrad": {"eps": 1e-10, "lr_decay": 0.0, "initial_accumulator_value": 0.0},
    "rmsprop": {"eps": 1e-8, "alpha": 0.99, "momentum": 0.0, "centered": False},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8, "adam_learning_rate": None},
}


def check_optimizer_fields(kind: str, given: Mapping[str, Any]) -> None:
    """Raise RecipeError when `given` (fields set by the user) holds one that `kind` does not have."""
    own = DEFAULTS[kind]
    for name, value in given.items():
        if name in COMMON_FIELDS or name in own or value is None:
            continue
        users = [other for other in get_args(OptimizerType) if name in DEFAULTS[other]]
        raise RecipeError(
            f"optimizer.{name}={value!r} with optimizer.type={kind!r}",
            expected=f"{kind} has {', '.join(own) or 'no parameter of its own'}; {name} belongs to {', '.join(users)}"
            + did_you_mean(name, own),
            do=f"remove optimizer.{name} (on the command line: --optimizer.{name} None), or change optimizer.type",
        )


def optimizer_parameters(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of `kind`: the default, or the value in `given` where it is not None."""
    return {name: default if given.get(name) is None else given[name] for name, default in DEFAULTS[kind].items()}
