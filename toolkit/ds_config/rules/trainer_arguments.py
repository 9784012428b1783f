"""Rules about the Hugging Face Trainer's arguments themselves: what TrainingArguments would refuse, or take for something else."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.ds_config.edits import rename, write
from toolkit.ds_config.meant import meant
from toolkit.ds_config.misspelt import misspelt
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.schema_arguments import ARGUMENTS, READ, REMOVED
from toolkit.ds_config.schema_keys import Same
from toolkit.ds_config.schema_unknown import MOST_NAMED
from toolkit.ds_config.values import show
from toolkit.errors import did_you_mean


@rule(
    "trainer-argument-value",
    looks_at=", ".join(READ),
    why="TrainingArguments refuses other names of schedules and optimizers, and keeps any other value as it is: it fails in "
    "training, and text counts as true",
    role="arguments",
)
def trainer_argument_value(context: Context) -> Iterator[Fault]:
    for name, value in (context.training_args or {}).items():
        key = READ.get(name)
        if key is not None and not key.accepts(value):
            near = did_you_mean(value[:100], [str(choice) for choice in key.choices]) if isinstance(value, str) else ""
            certain = meant(key, value)
            fix = () if certain is None else (write(name, certain),)
            yield name, f"{name}={show(value)} among the arguments{near}", key.describe(), "correct it", *fix


@rule(
    "trainer-argument-unknown",
    looks_at="every argument",
    why="TrainingArguments raises TypeError for a name it does not have, and a name that was misspelt leaves the default; "
    "subclasses and scripts have arguments of their own, so it is a warning",
    severity="warning",
    role="arguments",
)
def trainer_argument_unknown(context: Context) -> Iterator[Fault]:
    arguments = context.training_args or {}
    for name in arguments.keys() & REMOVED.keys():
        what, instead = f"{name} among the arguments is gone from TrainingArguments (transformers 5)", REMOVED[name]
        renamed = [rename(name, instead.name)] if isinstance(instead, Same) and instead.name not in arguments else []
        yield name, what, str(instead), f"use {instead}", *renamed
    unknown = [name for name in arguments if name not in ARGUMENTS and name not in REMOVED]
    if unknown:
        names = ", ".join(f"{name[:60]!r}{did_you_mean(name[:60], ARGUMENTS)}" for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what = f"TrainingArguments does not have {names}{more}: not read here"
        expected = "names of TrainingArguments, or of the subclass or script that reads the file"
        certain = ((name, misspelt(name, ARGUMENTS)) for name in unknown[:MOST_NAMED])
        fix = tuple(rename(name, near) for name, near in certain if near and near not in arguments)
        yield unknown[0], what, expected, "correct the name, unless it is your own class's", *fix


@rule(
    "trainer-two-formats",
    looks_at="bf16, fp16, bf16_full_eval, fp16_full_eval",
    why="TrainingArguments raises ValueError where both are true",
    role="arguments",
)
def trainer_two_formats(context: Context) -> Iterator[Fault]:
    arguments = context.training_args or {}
    for one, other in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if arguments.get(one) is True and arguments.get(other) is True:
            what = f"{one}=true and {other}=true among the arguments"
            yield one, what, "one of the two", f"remove {other!r}"


@rule(
    "trainer-arguments-conflict",
    looks_at="deepspeed, fsdp, load_best_model_at_end, eval_strategy, save_strategy, save_only_model, lr_scheduler_type, "
    "dataloader_prefetch_factor",
    why="TrainingArguments and the Trainer raise ValueError for these together (_validate_args, Trainer.__init__)",
    role="arguments",
)
def trainer_arguments_conflict(context: Context) -> Iterator[Fault]:
    given = context.training_args or {}
    evaluates, saves = given.get("eval_strategy", "no"), given.get("save_strategy", "steps")
    if given.get("fsdp") and (given.get("deepspeed") or context.config):
        yield "fsdp", f"fsdp={show(given['fsdp'])} with DeepSpeed", "one of the two", "remove 'fsdp'"
    if given.get("load_best_model_at_end") is True:
        where = "load_best_model_at_end"
        if saves != "best" and evaluates != saves:
            what = f"{where}=true with eval_strategy={show(evaluates)} and save_strategy={show(saves)}"
            yield where, what, "the same strategy twice, or save_strategy 'best'", "make the two equal"
        if given.get("save_only_model") is True:
            what = f"{where}=true with save_only_model=true under DeepSpeed"
            yield where, what, "one of the two", "remove 'save_only_model'"
    if given.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy") and evaluates == "no":
        what = f"lr_scheduler_type={show(given['lr_scheduler_type'])} without an evaluation"
        yield "lr_scheduler_type", what, "eval_strategy 'steps' or 'epoch'", "write 'eval_strategy'"
    if given.get("dataloader_prefetch_factor") is not None and not given.get("dataloader_num_workers"):
        where = "dataloader_prefetch_factor"
        what = f"{where}={show(given[where])} without workers"
        yield where, what, "dataloader_num_workers above 0", "write 'dataloader_num_workers'"


TRAINER_ARGUMENT_RULES = (
    trainer_argument_value,
    trainer_argument_unknown,
    trainer_two_formats,
    trainer_arguments_conflict,
)
