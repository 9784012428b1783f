"""Rules about the scheduler section. Source of all: deepspeed/runtime/lr_schedules.py."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.schema_schedules import DEEPSPEED_SCHEDULERS, SCHEDULERS
from toolkit.ds_config.values import exact

PARAMS = "scheduler.params"
WARMUP = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")


def _kind(context: Context) -> str:
    return context.text("scheduler.type") or ""


@rule(
    "torch-scheduler",
    looks_at="scheduler.type, zero_optimization.stage, fp16.enabled, bf16.enabled",
    why="DeepSpeed hands its own optimizer to the schedule, and torch's classes take torch's optimizers alone: a TypeError at "
    "start, but for stage 0 in fp32, where the two are one (engine.py, _configure_lr_scheduler; run)",
)
def torch_scheduler(context: Context) -> Iterator[Fault]:
    kind = _kind(context)
    if kind not in SCHEDULERS or kind in DEEPSPEED_SCHEDULERS or not (context.stage or context.dtype != "fp32"):
        return
    place = f"at stage {context.stage}" if context.stage else f"in {context.dtype}"
    what = f"scheduler.type={kind!r} {place}: torch's schedules do not take DeepSpeed's optimizer"
    nearest = "WarmupCosineLR" if "Cosine" in kind else "WarmupDecayLR"
    cure = f"write {nearest!r}, or remove 'scheduler' and step a schedule of torch's in the training script"
    yield "scheduler.type", what, f"one of {', '.join(DEEPSPEED_SCHEDULERS)}", cure


@rule(
    "warmup-type-unwritten",
    looks_at=f"scheduler.type, {PARAMS}.warmup_type",
    why="the default is 'log', not linear, and Hugging Face never fills it in (lr_schedules.py, WarmupLR)",
    severity="warning",
)
def warmup_type_unwritten(context: Context) -> Iterator[Fault]:
    where = f"{PARAMS}.warmup_type"
    if _kind(context) in WARMUP and context.has(PARAMS) and not context.has(where):
        yield (
            where,
            f"{where} is missing: the warm-up is logarithmic",
            "'linear' or 'log'",
            'write "warmup_type": "linear"',
        )


@rule(
    "warmup-steps-unwritten",
    looks_at=f"scheduler.type, {PARAMS}.warmup_num_steps",
    why="the default is 1000 optimizer steps, which is longer than many fine-tuning runs (lr_schedules.py, WarmupLR)",
    severity="warning",
)
def warmup_steps_unwritten(context: Context) -> Iterator[Fault]:
    where = f"{PARAMS}.warmup_num_steps"
    if _kind(context) in WARMUP and context.has(PARAMS) and not context.has(where):
        yield (
            where,
            f"{where} is missing: 1000 steps are taken",
            "the warm-up in optimizer steps",
            "write 'warmup_num_steps'",
        )


@rule(
    "warmup-max-lr",
    looks_at=f"{PARAMS}.warmup_max_lr, optimizer.params.lr",
    why="the schedule overrides the optimizer's lr; WarmupDecayLR's default is 0.001 whatever the optimizer says",
    severity="warning",
)
def warmup_max_lr(context: Context) -> Iterator[Fault]:
    where, rate = f"{PARAMS}.warmup_max_lr", context.number("optimizer.params.lr")
    if _kind(context) not in WARMUP[:2] or not context.has(PARAMS):
        return
    if _kind(context) == "WarmupDecayLR" and context.raw(where) is None:
        yield where, f"{where} is missing: WarmupDecayLR takes 0.001", "the peak learning rate", "write 'warmup_max_lr'"
    peak = context.number(where)
    if peak is not None and rate is not None and peak != rate:
        what = f"{where}={exact(peak)} overrides optimizer.params.lr={exact(rate)}"
        yield where, what, "the same number twice", "make the two equal"


@rule(
    "warmup-downwards",
    looks_at=f"{PARAMS}.warmup_min_lr, {PARAMS}.warmup_max_lr",
    why="the warm-up then lowers the rate from warmup_min_lr to warmup_max_lr, without a word (lr_schedules.py, WarmupLR)",
    severity="warning",
)
def warmup_downwards(context: Context) -> Iterator[Fault]:
    least, peak = context.number(f"{PARAMS}.warmup_min_lr"), context.number(f"{PARAMS}.warmup_max_lr")
    if _kind(context) in WARMUP[:2] and least is not None and peak is not None and least > peak:
        where = f"{PARAMS}.warmup_min_lr"
        what = f"{where}={exact(least)} is above warmup_max_lr={exact(peak)}: the rate falls during the warm-up"
        yield where, what, f"at most {exact(peak)}", "exchange the two, or lower warmup_min_lr"


@rule(
    "warmup-longer-than-run",
    looks_at=f"{PARAMS}.warmup_num_steps, {PARAMS}.total_num_steps",
    why="DeepSpeed only warns; the learning rate never reaches its peak",
    severity="warning",
)
def warmup_longer_than_run(context: Context) -> Iterator[Fault]:
    warmup, total = context.number(f"{PARAMS}.warmup_num_steps"), context.number(f"{PARAMS}.total_num_steps")
    if warmup is not None and total is not None and warmup >= total:
        where = f"{PARAMS}.warmup_num_steps"
        what = f"{where}={exact(warmup)} with total_num_steps={exact(total)}: the peak is never followed by the decay"
        yield where, what, f"fewer than {exact(total)} steps", "shorten the warm-up, or lengthen the run"


@rule(
    "one-cycle-momentum",
    looks_at=f"{PARAMS}.cycle_momentum",
    why="OneCycle's default overwrites Adam's betas with (momentum, 0.99) in every step",
    severity="warning",
)
def one_cycle_momentum(context: Context) -> Iterator[Fault]:
    where = f"{PARAMS}.cycle_momentum"
    if _kind(context) == "OneCycle" and context.has(PARAMS) and not context.has(where):
        what = f"{where} is missing: OneCycle overwrites the optimizer's betas"
        yield where, what, "false, or true on purpose", 'write "cycle_momentum": false'


@rule(
    "one-cycle-length",
    looks_at=f"scheduler.type, {PARAMS}.total_steps, {PARAMS}.epochs, {PARAMS}.steps_per_epoch",
    why="torch's OneCycleLR raises ValueError unless its length is known",
)
def one_cycle_length(context: Context) -> Iterator[Fault]:
    where = f"{PARAMS}.total_steps"
    product = all(context.raw(f"{PARAMS}.{name}") is not None for name in ("epochs", "steps_per_epoch"))
    if _kind(context) == "OneCycleLR" and context.has(PARAMS) and context.raw(where) is None and not product:
        yield where, f"{where} is missing", "the optimizer steps of the run, or epochs and steps_per_epoch", "write it"


@rule(
    "scheduler-without-optimizer",
    looks_at="scheduler, optimizer",
    why="without peak rate or optimizer section the schedule's rate comes from an optimizer object DeepSpeed is handed, "
    "and accelerate accepts a scheduler section only with its DummyScheduler",
    severity="warning",
)
def scheduler_without_optimizer(context: Context) -> Iterator[Fault]:
    if context.has("scheduler") and not context.has("optimizer") and context.training_args is None:
        what = "scheduler is written without an optimizer section"
        yield "scheduler", what, "both sections, or neither", "add the optimizer section, or remove 'scheduler'"


SCHEDULER_RULES = (
    torch_scheduler,
    warmup_type_unwritten,
    warmup_steps_unwritten,
    warmup_max_lr,
    warmup_downwards,
    warmup_longer_than_run,
    one_cycle_momentum,
    one_cycle_length,
    scheduler_without_optimizer,
)
