"""Parameters of every optimizer and schedule that a DeepSpeed JSON can name, as of DeepSpeed 0.19.8 and torch 2.13.

DeepSpeed passes optimizer.params to the class it picks (deepspeed/runtime/engine.py, _configure_basic_optimizer) and
scheduler.params to the class of that name (runtime/lr_schedules.py, else torch.optim.lr_scheduler), so the keys are
the classes' own arguments. Names in deepspeed's own list match in any case, torch's only exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.schema_keys import (
    BOOL,
    INTEGER,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    SHARE,
    Key,
    Same,
    Section,
    one_of,
)

RATE = Key("number", low=0)
LEARNING_RATE = Key("number", low=0, auto=True)
EPS = Key("number", low=0, auto=True)
DECAY = Key("number", low=0, auto=True)
# At 1 the bias correction divides by 1 - 1 = 0: every weight is NaN after the first step.
BETAS = Key("numbers", low=0, below=1, auto=True)
SWITCH = Key("bool", nullable=True)

_COMMON: dict[str, Key] = {"lr": LEARNING_RATE, "weight_decay": DECAY}
_ADAM: dict[str, Key] = {**_COMMON, "betas": BETAS, "eps": EPS}
_FLAGS: dict[str, Key] = {"foreach": SWITCH, "maximize": BOOL, "differentiable": BOOL}
_TORCH_ADAM: dict[str, Key] = {**_ADAM, **_FLAGS, "amsgrad": BOOL, "capturable": BOOL, "fused": SWITCH}

ENGINE_PARAMS: dict[str, Key] = {"torch_adam": BOOL, "adam_w_mode": BOOL, "fp32_optimizer_states": BOOL}
"""Taken out of params by the engine before it builds Adam, AdamW or Muon."""

ENGINE_BUILT = ("FusedAdam", "DeepSpeedCPUAdam", "MuonWithAuxAdam", "torch.optim.Adam", "torch.optim.AdamW")

CLASS_PARAMS: dict[str, dict[str, Key]] = {
    "FusedAdam": {**_ADAM, "bias_correction": BOOL, "amsgrad": BOOL, "set_grad_none": BOOL},
    "DeepSpeedCPUAdam": {**_ADAM, "bias_correction": BOOL, "amsgrad": BOOL},
    "DeepSpeedCPUAdagrad": {**_COMMON, "eps": EPS, "amsgrad": BOOL, "fp32_optimizer_states": BOOL},
    "FusedLion": {**_COMMON, "betas": BETAS, "set_grad_none": BOOL},
    "DeepSpeedCPULion": {**_COMMON, "betas": BETAS, "fp32_optimizer_states": BOOL},
    "FusedLamb": {
        **_ADAM,
        "bias_correction": BOOL,
        "eps_inside_sqrt": BOOL,
        "max_coeff": RATE,
        "min_coeff": RATE,
        "amsgrad": BOOL,
    },
    "MuonWithAuxAdam": {
        **_ADAM,
        "momentum": Key("number", low=0, high=1),
        "ns_method": one_of("gram", "standard"),
        "muon_lr": RATE,
        "adam_lr": RATE,
        "per_head_muon": BOOL,
        "foreach": SWITCH,
    },
    "torch.optim.Adam": {**_TORCH_ADAM, "decoupled_weight_decay": BOOL},
    "torch.optim.AdamW": _TORCH_ADAM,
    "torch.optim.Adagrad": {
        **_COMMON,
        **_FLAGS,
        "eps": EPS,
        "lr_decay": RATE,
        "initial_accumulator_value": RATE,
        "fused": SWITCH,
    },
    "torch.optim.SGD": {
        **_COMMON,
        **_FLAGS,
        "momentum": RATE,
        "dampening": NUMBER,
        "nesterov": BOOL,
        "fused": SWITCH,
    },
    "torch.optim.RMSprop": {
        **_COMMON,
        **_FLAGS,
        "alpha": SHARE,  # above 1 the mean of squares falls below 0, and its root is NaN
        "eps": EPS,
        "momentum": RATE,
        "centered": BOOL,
        "capturable": BOOL,
    },
    "torch.optim.Adadelta": {**_COMMON, **_FLAGS, "rho": SHARE, "eps": EPS, "capturable": BOOL},
    "torch.optim.Adamax": {**_ADAM, **_FLAGS, "capturable": BOOL},
    "torch.optim.NAdam": {
        **_ADAM,
        **_FLAGS,
        "momentum_decay": RATE,
        "decoupled_weight_decay": BOOL,
        "capturable": BOOL,
    },
    "torch.optim.RAdam": {**_ADAM, **_FLAGS, "decoupled_weight_decay": BOOL, "capturable": BOOL},
    "torch.optim.ASGD": {
        **_COMMON,
        **_FLAGS,
        "lambd": RATE,
        "alpha": RATE,
        "t0": RATE,
        "capturable": BOOL,
    },
    "torch.optim.Rprop": {
        "lr": LEARNING_RATE,
        **_FLAGS,
        "etas": Key("numbers", low=0),
        "step_sizes": Key("numbers", low=0),
        "capturable": BOOL,
    },
    "torch.optim.Adafactor": {
        **_COMMON,
        "beta2_decay": NUMBER,
        "eps": Key("list"),
        "d": NUMBER,
        "foreach": SWITCH,
        "maximize": BOOL,
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

_WARMUP: dict[str, Key] = {
    "warmup_num_steps": Key("int", low=1, auto=True),
    "warmup_type": one_of("linear", "log"),
    "last_batch_iteration": INTEGER,
}
_WARMUP_LR: dict[str, Key] = {
    **_WARMUP,
    "warmup_min_lr": Key("rates", low=0, auto=True),
    "warmup_max_lr": Key("rates", low=0, auto=True),
}
TOTAL = Key("count", low=1, auto=True)
STEPS = Key("count", low=1)
# torch wants what a running schedule has stored for any other number: KeyError 'initial_lr'.
LAST = {"last_epoch": Key("int", low=-1, high=-1)}

SCHEDULERS: dict[str, Section] = {
    "WarmupLR": Section(_WARMUP_LR),
    "WarmupDecayLR": Section({**_WARMUP_LR, "total_num_steps": TOTAL}, required=("total_num_steps",)),
    "WarmupCosineLR": Section(
        {**_WARMUP, "total_num_steps": TOTAL, "warmup_min_ratio": RATE, "cos_min_ratio": RATE},
        required=("total_num_steps",),
    ),
    "OneCycle": Section(
        {
            **dict.fromkeys(("cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "decay_mom_rate"), RATE),
            **dict.fromkeys(("cycle_min_mom", "cycle_max_mom"), Key("number", low=0, high=1)),
            "cycle_first_step_size": Key("number", above=0),
            "cycle_second_step_size": Key("number", low=0, nullable=True),
            "cycle_first_stair_count": NON_NEGATIVE,
            "cycle_second_stair_count": Key("int", low=0, nullable=True),
            "decay_step_size": NON_NEGATIVE,
            "cycle_momentum": BOOL,
            "last_batch_iteration": INTEGER,
        },
        required=("cycle_min_lr", "cycle_max_lr"),
    ),
    "LRRangeTest": Section(
        {
            "lr_range_test_min_lr": Key("rates", low=0),
            "lr_range_test_step_size": POSITIVE,
            "lr_range_test_step_rate": RATE,
            "lr_range_test_staircase": BOOL,
            "last_batch_iteration": INTEGER,
        }
    ),
    "ConstantLR": Section({**LAST, "factor": SHARE, "total_iters": STEPS}),
    "LinearLR": Section(
        {**LAST, "start_factor": Key("number", above=0, high=1), "end_factor": SHARE, "total_iters": STEPS}
    ),
    "ExponentialLR": Section({**LAST, "gamma": RATE}, required=("gamma",)),
    "StepLR": Section({**LAST, "step_size": STEPS, "gamma": RATE}, required=("step_size",)),
    "MultiStepLR": Section({**LAST, "milestones": Key("list"), "gamma": RATE}, required=("milestones",)),
    "PolynomialLR": Section({**LAST, "total_iters": STEPS, "power": RATE}),
    "CosineAnnealingLR": Section({**LAST, "T_max": STEPS, "eta_min": RATE}, required=("T_max",)),
    "CosineAnnealingWarmRestarts": Section(
        {**LAST, "T_0": POSITIVE, "T_mult": POSITIVE, "eta_min": RATE}, required=("T_0",)
    ),
    "CyclicLR": Section(
        {
            **LAST,
            **dict.fromkeys(("base_lr", "max_lr", "gamma", "base_momentum", "max_momentum"), RATE),
            "step_size_up": POSITIVE,
            "step_size_down": Key("int", low=1, nullable=True),
            "mode": one_of("triangular", "triangular2", "exp_range"),
            "scale_mode": one_of("cycle", "iterations"),
            "cycle_momentum": BOOL,
        },
        required=("base_lr", "max_lr"),
    ),
    "OneCycleLR": Section(
        {
            **LAST,
            **dict.fromkeys(("max_lr", "pct_start", "base_momentum", "max_momentum"), RATE),
            **dict.fromkeys(("div_factor", "final_div_factor"), Key("number", above=0)),
            **dict.fromkeys(("total_steps", "epochs", "steps_per_epoch"), Key("int", low=1, nullable=True)),
            "anneal_strategy": one_of("cos", "linear"),
            "cycle_momentum": BOOL,
            "three_phase": BOOL,
        },
        required=("max_lr",),
    ),
}

DEEPSPEED_SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest")
"""DeepSpeed's own; the others of SCHEDULERS are torch's."""

EQUIVALENTS = {"linear": "WarmupDecayLR", "constant_with_warmup": "WarmupLR", "cosine": "WarmupCosineLR"}
"""The Trainer's lr_scheduler_type -> the nearest DeepSpeed schedule."""

SCHEDULERS_MEANT = {**EQUIVALENTS, "constant": "WarmupLR"}
"""The Trainer's names as scheduler.type -> what to write: a WarmupLR is constant once its warm-up is over."""

REFUSED_SCHEDULERS = {
    "LambdaLR": "it takes a Python function, which JSON cannot hold",
    "MultiplicativeLR": "it takes a Python function, which JSON cannot hold",
    "SequentialLR": "it takes scheduler objects, which JSON cannot hold",
    "ChainedScheduler": "it takes scheduler objects, which JSON cannot hold",
    "ReduceLROnPlateau": "its step needs a metric, which DeepSpeed does not pass",
}


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
