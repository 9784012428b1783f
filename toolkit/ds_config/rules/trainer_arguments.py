"""Rules about the Hugging Face Trainer's arguments themselves: what TrainingArguments would refuse, or take for something else."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.schema_arguments import ARGUMENTS, READ, REMOVED
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
            yield (
                name,
                f"{name}={show(value)} among the arguments{near}",
                key.describe(),
                "correct it",
            )


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
        what = f"{name} among the arguments is gone from TrainingArguments (transformers 5)"
        yield name, what, REMOVED[name], f"use {REMOVED[name]}"
    unknown = [name for name in arguments if name not in ARGUMENTS and name not in REMOVED]
    if unknown:
        names = ", ".join(f"{name[:60]!r}{did_you_mean(name[:60], ARGUMENTS)}" for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what = f"TrainingArguments does not have {names}{more}: not read here"
        expected = "names of TrainingArguments, or of the subclass or script that reads the file"
        yield unknown[0], what, expected, "correct the name, unless it is your own class's"


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


TRAINER_ARGUMENT_RULES = (trainer_argument_value, trainer_argument_unknown, trainer_two_formats)
