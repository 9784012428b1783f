"""Parameters of every optimizer that a DeepSpeed JSON can name, as of DeepSpeed 0.19.8 and torch 2.13.

DeepSpeed passes optimizer.params to the class it picks (deepspeed/runtime/engine.py, _configure_basic_optimizer), so the
keys are the classes' own arguments. Names in deepspeed's own list match in any case, torch's only exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.schema_keys import (
    BOOL,
    NUMBER,
    SHARE,
    Key,
    Same,
    Section,
    one_of,
)

RATE = Key("number", low=0)
LEARNING_RATE = Key("number", low=0, auto=True).that(
    "is the learning rate", absent="the class's own default, often 0.001"
)
EPS = Key("number", low=0, auto=True).that("keeps the division by small gradients in bounds")
DECAY = Key("number", low=0, auto=True).that(
    "pulls the weights towards 0", absent="0 in DeepSpeed's classes, 0.01 in torch's AdamW"
)
# At 1 the bias correction divides by 1 - 1 = 0: every weight is NaN after the first step.
BETAS = Key("numbers", low=0, below=1, auto=True).that(
    "are how slowly the means of gradients and of their squares move"
)
SWITCH = Key("bool", nullable=True)
AMSGRAD = BOOL.that("takes the largest mean of squares so far")
BIAS = BOOL.that("corrects the means of the first steps; true where it is absent")
MOMENTUM = RATE.that("is how much of the last update is kept")
MASKED = BOOL.that("lets CUDA graphs capture the step")
DECOUPLED = BOOL.that("decays the weights apart from the gradients")

_COMMON: dict[str, Key] = {"lr": LEARNING_RATE, "weight_decay": DECAY}
_ADAM: dict[str, Key] = {**_COMMON, "betas": BETAS, "eps": EPS}
FOREACH = SWITCH.that("updates many parameters per kernel")
FUSED = SWITCH.that("updates all parameters in one kernel")
_FLAGS: dict[str, Key] = {
    "foreach": FOREACH,
    "maximize": BOOL.that("climbs in place of descending"),
    "differentiable": BOOL.that("lets gradients flow through the step"),
}
_TORCH_ADAM: dict[str, Key] = {**_ADAM, **_FLAGS, "amsgrad": AMSGRAD, "capturable": MASKED, "fused": FUSED}
IN_FP32 = BOOL.that("keeps the states in fp32; true where it is absent")

ENGINE_PARAMS: dict[str, Key] = {
    "torch_adam": BOOL.that("takes torch's class, which needs no compiler"),
    "adam_w_mode": BOOL.that(
        "decays the weights apart from the gradients (AdamW); read for the type Adam", absent="true: Adam runs as AdamW"
    ),
    "fp32_optimizer_states": IN_FP32,
}
"""Taken out of params by the engine before it builds Adam, AdamW or Muon."""

ENGINE_BUILT = ("FusedAdam", "DeepSpeedCPUAdam", "MuonWithAuxAdam", "torch.optim.Adam", "torch.optim.AdamW")

CLASS_PARAMS: dict[str, dict[str, Key]] = {
    "FusedAdam": {
        **_ADAM,
        "bias_correction": BIAS,
        "amsgrad": AMSGRAD,
        "set_grad_none": BOOL.that("drops gradients after the step"),
    },
    "DeepSpeedCPUAdam": {**_ADAM, "bias_correction": BIAS, "amsgrad": AMSGRAD},
    "DeepSpeedCPUAdagrad": {**_COMMON, "eps": EPS, "amsgrad": AMSGRAD, "fp32_optimizer_states": IN_FP32},
    "FusedLion": {**_COMMON, "betas": BETAS, "set_grad_none": BOOL.that("drops gradients after the step")},
    "DeepSpeedCPULion": {**_COMMON, "betas": BETAS, "fp32_optimizer_states": IN_FP32},
    "FusedLamb": {
        **_ADAM,
        "bias_correction": BIAS,
        "eps_inside_sqrt": BOOL.that("adds eps under the root"),
        "max_coeff": RATE.that("is the largest trust ratio of a layer"),
        "min_coeff": RATE.that("is the smallest trust ratio of a layer"),
        "amsgrad": AMSGRAD,
    },
    "MuonWithAuxAdam": {
        **_ADAM,
        "momentum": Key("number", low=0, high=1).that("is how much of the last update of matrices is kept"),
        "ns_method": one_of("gram", "standard").that("is how matrices are made orthogonal; gram where it is absent"),
        "muon_lr": RATE.that("is the learning rate of matrices; lr where it is absent"),
        "adam_lr": RATE.that("is the learning rate of everything else; lr where it is absent"),
        "per_head_muon": BOOL.that("treats each attention head as a matrix of its own"),
        "foreach": FOREACH,
    },
    "torch.optim.Adam": {**_TORCH_ADAM, "decoupled_weight_decay": DECOUPLED},
    "torch.optim.AdamW": _TORCH_ADAM,
    "torch.optim.Adagrad": {
        **_COMMON,
        **_FLAGS,
        "eps": EPS,
        "lr_decay": RATE.that("lowers the learning rate from step to step"),
        "initial_accumulator_value": RATE.that("is the sum of squares at the start"),
        "fused": FUSED,
    },
    "torch.optim.SGD": {
        **_COMMON,
        **_FLAGS,
        "momentum": MOMENTUM,
        "dampening": NUMBER.that("lowers the share of the new gradient in the momentum"),
        "nesterov": BOOL.that("looks ahead along the momentum"),
        "fused": FUSED,
    },
    "torch.optim.RMSprop": {
        **_COMMON,
        **_FLAGS,
        # above 1 the mean of squares falls below 0, and its root is NaN
        "alpha": SHARE.that("is how slowly the mean of squares moves"),
        "eps": EPS,
        "momentum": MOMENTUM,
        "centered": BOOL.that("divides by the deviation in place of the root mean square"),
        "capturable": MASKED,
    },
    "torch.optim.Adadelta": {
        **_COMMON,
        **_FLAGS,
        "rho": SHARE.that("is how slowly the mean of squares moves"),
        "eps": EPS,
        "capturable": MASKED,
    },
    "torch.optim.Adamax": {**_ADAM, **_FLAGS, "capturable": MASKED},
    "torch.optim.NAdam": {
        **_ADAM,
        **_FLAGS,
        "momentum_decay": RATE.that("is how fast the momentum grows"),
        "decoupled_weight_decay": DECOUPLED,
        "capturable": MASKED,
    },
    "torch.optim.RAdam": {**_ADAM, **_FLAGS, "decoupled_weight_decay": DECOUPLED, "capturable": MASKED},
    "torch.optim.ASGD": {
        **_COMMON,
        **_FLAGS,
        "lambd": RATE.that("lowers the weights from step to step"),
        "alpha": RATE.that("is the power by which the learning rate falls"),
        "t0": RATE.that("is the step from which weights are averaged"),
        "capturable": MASKED,
    },
    "torch.optim.Rprop": {
        "lr": LEARNING_RATE,
        **_FLAGS,
        "etas": Key("numbers", low=0).that("are the factors by which a step shrinks and grows"),
        "step_sizes": Key("numbers", low=0).that("are the smallest and the largest step"),
        "capturable": MASKED,
    },
    "torch.optim.Adafactor": {
        **_COMMON,
        "beta2_decay": NUMBER.that("is the power by which the mean of squares slows down"),
        "eps": Key("list").that("keeps divisions, and the size of a step, in bounds"),
        "d": NUMBER.that("is the root mean square at which an update is clipped"),
        "foreach": FOREACH,
        "maximize": BOOL.that("climbs in place of descending"),
    },
}
"""Class -> its arguments; mup's classes are not listed, their arguments pass unchecked."""

ADAM_DEFAULTS: dict[str, Any] = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}

CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "FusedAdam": ADAM_DEFAULTS,
    "DeepSpeedCPUAdam": ADAM_DEFAULTS,
    "torch.optim.Adam": ADAM_DEFAULTS,
    "torch.optim.AdamW": {**ADAM_DEFAULTS, "weight_decay": 0.01},
}
"""What the classes that the Trainer's arguments speak of take for what is not written; tests compare them."""

DEEPSPEED_OPTIMIZERS = ("adagrad", "adam", "adamw", "lamb", "lion", "muadam", "muadamw", "musgd", "muon")
"""Types that DeepSpeed knows in any case (runtime/config.py)."""

TORCH_OPTIMIZERS = tuple(name.removeprefix("torch.optim.") for name in CLASS_PARAMS if name.startswith("torch."))

REFUSED_OPTIMIZERS = {
    "LBFGS": "it needs a closure, which DeepSpeed's step does not pass",
    "SparseAdam": "it takes sparse gradients only",
    "OneBitAdam": "it was removed; write AdamW",
    "ZeroOneAdam": "it was removed; write AdamW",
    "OneBitLamb": "it was removed; write AdamW",
    "OnebitLamb": "it was removed; write AdamW",
}

OPTIMIZER_REMOVED = {"max_grad_norm": Same("gradient_clipping", "")}


def optimizer_class(kind: str, params: Mapping[str, Any], *, offloads: bool) -> str | None:
    """The class that DeepSpeed builds for optimizer.type `kind`; None for a name without a table."""
    name = kind.lower()
    if name in ("adam", "adamw"):
        if params.get("torch_adam") is True:
            decoupled = name == "adamw" or params.get("adam_w_mode", True) is not False
            return "torch.optim.AdamW" if decoupled else "torch.optim.Adam"
        return "DeepSpeedCPUAdam" if offloads else "FusedAdam"
    if name == "adagrad":
        return "DeepSpeedCPUAdagrad" if offloads else "torch.optim.Adagrad"
    if name == "lion":
        return "DeepSpeedCPULion" if offloads else "FusedLion"
    if name in ("lamb", "muon"):
        return {"lamb": "FusedLamb", "muon": "MuonWithAuxAdam"}[name]
    return f"torch.optim.{kind}" if f"torch.optim.{kind}" in CLASS_PARAMS else None


def optimizer_section(name: str) -> Section:
    """The table of optimizer.params for the class `name`."""
    extra = ENGINE_PARAMS if name in ENGINE_BUILT else {}
    return Section({**CLASS_PARAMS[name], **extra}, removed=OPTIMIZER_REMOVED, is_closed=True)
