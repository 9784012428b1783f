"""Parameters of every schedule that a DeepSpeed JSON can name, as of DeepSpeed 0.19.8 and torch 2.13.

DeepSpeed passes scheduler.params to the class of that name (runtime/lr_schedules.py, else torch.optim.lr_scheduler), so the
keys are the classes' own arguments.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import BOOL, INTEGER, NON_NEGATIVE, POSITIVE, SHARE, Key, Section, one_of

RATE = Key("number", low=0)
BATCH = INTEGER.that("is the step to begin after; -1 for the start")

_WARMUP: dict[str, Key] = {
    "warmup_num_steps": Key("int", low=1, auto=True).that(
        "is the optimizer steps of the warm-up", absent="1000 optimizer steps of warm-up"
    ),
    "warmup_type": one_of("linear", "log").that(
        "is the curve of the warm-up", absent="log: the rate rises by a logarithm"
    ),
    "last_batch_iteration": BATCH,
}
_WARMUP_LR: dict[str, Key] = {
    **_WARMUP,
    "warmup_min_lr": Key("rates", low=0, auto=True).that("is the rate of the first two steps; 0 where it is absent"),
    "warmup_max_lr": Key("rates", low=0, auto=True).that(
        "is the rate after the warm-up, in place of the optimizer's",
        absent="WarmupLR: the optimizer's rate; WarmupDecayLR: 0.001, whatever the optimizer says",
    ),
}
TOTAL = Key("count", low=1, auto=True).that("is the optimizer steps of the run")
STEPS = Key("count", low=1)
# torch wants what a running schedule has stored for any other number: KeyError 'initial_lr'.
LAST = {"last_epoch": Key("int", low=-1, high=-1).that("is the step to begin after; only -1 works")}
GAMMA = RATE.that("is the factor by which the rate falls")
LEAST = RATE.that("is the smallest rate")
LEAST_MOMENTUM = RATE.that("is the momentum at the highest rate")
MOST_MOMENTUM = RATE.that("is the momentum at the lowest rate")
CYCLED = BOOL.that("moves the momentum against the rate; true where it is absent")

SCHEDULERS: dict[str, Section] = {
    "WarmupLR": Section(_WARMUP_LR, does="rises to its peak and stays there"),
    "WarmupDecayLR": Section(
        {**_WARMUP_LR, "total_num_steps": TOTAL}, required=("total_num_steps",), does="rises and falls to 0 along lines"
    ),
    "WarmupCosineLR": Section(
        {
            **_WARMUP,
            "total_num_steps": TOTAL,
            "warmup_min_ratio": RATE.that(
                "is the share of the rate that the warm-up begins with; 0 where it is absent"
            ),
            "cos_min_ratio": RATE.that("is the share of the rate that it ends with; 0.0001 where it is absent"),
        },
        required=("total_num_steps",),
        does="rises and falls along a cosine",
    ),
    "OneCycle": Section(
        {
            "cycle_min_lr": RATE.that("is the rate at both ends of the cycle"),
            "cycle_max_lr": RATE.that("is the rate in the middle of the cycle"),
            "decay_lr_rate": RATE.that("is how fast the rate falls after the cycle"),
            "decay_mom_rate": RATE.that("is how fast the momentum rises after the cycle"),
            "cycle_min_mom": Key("number", low=0, high=1).that("is the momentum in the middle of the cycle"),
            "cycle_max_mom": Key("number", low=0, high=1).that("is the momentum at both ends of the cycle"),
            "cycle_first_step_size": Key("number", above=0).that(
                "is the steps of its first half; 2000 where it is absent"
            ),
            "cycle_second_step_size": Key("number", low=0, nullable=True).that(
                "is the steps of its second half; null: the same"
            ),
            "cycle_first_stair_count": NON_NEGATIVE.that("is the stairs of its first half; 0 for a line"),
            "cycle_second_stair_count": Key("int", low=0, nullable=True).that(
                "is the stairs of its second half; null: the same"
            ),
            "decay_step_size": NON_NEGATIVE.that("is after how many steps the rate falls again"),
            "cycle_momentum": BOOL.that(
                "moves the momentum against the rate",
                absent="true: the optimizer's betas are overwritten in every step",
            ),
            "last_batch_iteration": BATCH,
        },
        required=("cycle_min_lr", "cycle_max_lr"),
        does="rises, falls and fades out",
    ),
    "LRRangeTest": Section(
        {
            "lr_range_test_min_lr": Key("rates", low=0).that(
                "is the rate that it begins with; 0.001 where it is absent"
            ),
            "lr_range_test_step_size": POSITIVE.that(
                "is after how many steps it grows by step_rate; 2000 where it is absent"
            ),
            "lr_range_test_step_rate": RATE.that("is how much it grows then; 1.0 where it is absent"),
            "lr_range_test_staircase": BOOL.that("grows in stairs"),
            "last_batch_iteration": BATCH,
        },
        does="raises the rate without end, to find one that works",
    ),
    "ConstantLR": Section(
        {
            **LAST,
            "factor": SHARE.that("multiplies the rate for a while"),
            "total_iters": STEPS.that("is the steps of that while"),
        },
        does="begins with a share of the rate",
    ),
    "LinearLR": Section(
        {
            **LAST,
            "start_factor": Key("number", above=0, high=1).that("is the share of the rate that it begins with"),
            "end_factor": SHARE.that("is the share of the rate that it ends with"),
            "total_iters": STEPS.that("is the steps in between"),
        },
        does="goes from one share of the rate to another",
    ),
    "ExponentialLR": Section({**LAST, "gamma": GAMMA}, required=("gamma",), does="multiplies the rate in every step"),
    "StepLR": Section(
        {**LAST, "step_size": STEPS.that("is after how many steps the rate falls"), "gamma": GAMMA},
        required=("step_size",),
        does="lowers the rate every so many steps",
    ),
    "MultiStepLR": Section(
        {**LAST, "milestones": Key("list").that("lists the steps at which the rate falls"), "gamma": GAMMA},
        required=("milestones",),
        does="lowers the rate at certain steps",
    ),
    "PolynomialLR": Section(
        {
            **LAST,
            "total_iters": STEPS.that("is the steps after which the rate is 0"),
            "power": RATE.that("is the power of the curve"),
        },
        does="falls to 0 along a power",
    ),
    "CosineAnnealingLR": Section(
        {**LAST, "T_max": STEPS.that("is the steps of half a wave"), "eta_min": LEAST},
        required=("T_max",),
        does="falls along a cosine",
    ),
    "CosineAnnealingWarmRestarts": Section(
        {
            **LAST,
            "T_0": POSITIVE.that("is the steps until the first restart"),
            "T_mult": POSITIVE.that("multiplies that after each restart"),
            "eta_min": LEAST,
        },
        required=("T_0",),
        does="falls along a cosine again and again",
    ),
    "CyclicLR": Section(
        {
            **LAST,
            "base_lr": RATE.that("is the rate at the ends of a cycle"),
            "max_lr": RATE.that("is the rate in its middle"),
            "gamma": RATE.that("is the factor of exp_range"),
            "base_momentum": LEAST_MOMENTUM,
            "max_momentum": MOST_MOMENTUM,
            "step_size_up": POSITIVE.that("is the steps of the rise"),
            "step_size_down": Key("int", low=1, nullable=True).that("is the steps of the fall; null: the same"),
            "mode": one_of("triangular", "triangular2", "exp_range").that("says how the height of cycles changes"),
            "scale_mode": one_of("cycle", "iterations").that("counts that in cycles or in steps"),
            "cycle_momentum": CYCLED,
        },
        required=("base_lr", "max_lr"),
        does="rises and falls again and again",
    ),
    "OneCycleLR": Section(
        {
            **LAST,
            "max_lr": RATE.that("is the rate at the peak"),
            "pct_start": RATE.that("is the share of the run that the rise takes"),
            "base_momentum": LEAST_MOMENTUM,
            "max_momentum": MOST_MOMENTUM,
            "div_factor": Key("number", above=0).that("divides the peak for the rate at the start"),
            "final_div_factor": Key("number", above=0).that("divides that once more for the rate at the end"),
            "total_steps": Key("int", low=1, nullable=True).that("is the steps of the run"),
            "epochs": Key("int", low=1, nullable=True).that("is the epochs of the run, in the place of total_steps"),
            "steps_per_epoch": Key("int", low=1, nullable=True).that("is the steps of an epoch"),
            "anneal_strategy": one_of("cos", "linear").that("is the curve"),
            "cycle_momentum": CYCLED,
            "three_phase": BOOL.that("falls in two phases"),
        },
        required=("max_lr",),
        does="rises and falls once",
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
