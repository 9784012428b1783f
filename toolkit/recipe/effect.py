"""When each recipe field acts. A field that was changed and cannot act is refused: nobody is to believe in it.

A field at its default may stand anywhere, written out or not. Every field has an entry in FIELDS, held by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from toolkit.errors import RecipeError
from toolkit.recipe.choice import Choice
from toolkit.recipe.optimizers import COMMON_FIELDS, DEFAULTS

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class Acts:
    """What a field needs to have an effect."""

    when: Callable[[Recipe], bool]
    needs: str
    """The same in words, after "acts with"."""
    depends: tuple[str, ...]
    """Dotted names of the fields that decide it; a message shows their values."""


def has_held_out(recipe: Recipe) -> bool:
    """Whether there are examples to evaluate on."""
    return recipe.data.evaluation is not None or recipe.data.evaluation_examples > 0


def watches(recipe: Recipe) -> bool:
    """Whether anything follows the evaluation's metric."""
    return (
        recipe.schedule.type == "reduce_on_plateau"
        or recipe.checkpoint.keep_best
        or recipe.evaluation.early_stopping_patience > 0
    )


def _schedule(*types: str) -> Acts:
    return Acts(lambda recipe: recipe.schedule.type in types, f"schedule.type {_either(types)}", ("schedule.type",))


def _optimizer(name: str) -> Acts:
    types = tuple(kind for kind, own in DEFAULTS.items() if name in own)
    return Acts(lambda recipe: recipe.optimizer.type in types, f"optimizer.type {_either(types)}", ("optimizer.type",))


def _either(values: tuple[str, ...]) -> str:
    return " or ".join(map(repr, values))


_FP16 = Acts(lambda recipe: recipe.precision.dtype == "fp16", "precision.dtype 'fp16'", ("precision.dtype",))
# What "auto" becomes is known to the device; ds_config/state_formats.py asks again.
_BF16 = Acts(
    lambda recipe: recipe.precision.dtype in ("auto", "bf16", "fp8"),
    "precision.dtype 'bf16', 'fp8' or 'auto'",
    ("precision.dtype",),
)
# Stage 0 in 16 bits or in a pipeline is rendered as stage 1 (ds_config/render.py, effective_stage).
_REDUCES = Acts(
    lambda recipe: recipe.parallel.zero_stage > 0 or recipe.parallel.pipeline > 1 or recipe.precision.dtype != "fp32",
    "parallel.zero_stage 1, 2 or 3",
    ("parallel.zero_stage", "precision.dtype"),
)
_STAGE_3 = Acts(lambda recipe: recipe.parallel.zero_stage == 3, "parallel.zero_stage 3", ("parallel.zero_stage",))
_HELD_OUT = Acts(
    has_held_out, "data.evaluation or data.evaluation_examples", ("data.evaluation", "data.evaluation_examples")
)

FIELDS: dict[str, Acts | None] = {
    **dict.fromkeys(f"model.{name}" for name in ("path", "architecture", "weights", "config", "tokenizer")),
    **dict.fromkeys(
        f"model.{name}"
        for name in (
            "dropout",
            "attention",
            "batch_norm",
            "activation_checkpointing",
            "mlp_tiles",
            "kernels",
            "compile",
        )
    ),
    "model.activation_offload": Acts(
        lambda recipe: recipe.model.activation_checkpointing,
        "model.activation_checkpointing True",
        ("model.activation_checkpointing",),
    ),
    # split and subset: whether a source has several is known when it is opened.
    **dict.fromkeys(f"data.{name}" for name in ("train", "evaluation", "split", "subset", "max_examples")),
    **dict.fromkeys(f"data.{name}" for name in ("streaming", "shuffle", "packing", "overlong", "prefetch", "workers")),
    "data.group_by_length": Acts(
        lambda recipe: recipe.data.shuffle and not recipe.data.packing and not recipe.data.streaming,
        "data.shuffle True, data.packing False and data.streaming False",
        ("data.shuffle", "data.packing", "data.streaming"),
    ),
    "data.unreadable": Acts(
        lambda recipe: recipe.task.reads_media, "a task.name that reads images or recordings", ("task.name",)
    ),
    "data.evaluation_examples": Acts(
        lambda recipe: recipe.data.evaluation is None, "data.evaluation None", ("data.evaluation",)
    ),
    "data.evaluation_split": Acts(
        lambda recipe: recipe.data.evaluation is not None, "data.evaluation", ("data.evaluation",)
    ),
    **dict.fromkeys(f"batch.{name}" for name in ("global_size", "micro_size", "auto_micro_size")),
    "batch.sequence_length": Acts(
        lambda recipe: recipe.task.has_length, "a task.name whose examples are sequences of tokens", ("task.name",)
    ),
    **dict.fromkeys(f"optimizer.{name}" for name in COMMON_FIELDS),
    **{f"optimizer.{name}": _optimizer(name) for own in DEFAULTS.values() for name in own},
    "schedule.type": None,
    "schedule.warmup_steps": Acts(
        lambda recipe: recipe.schedule.type not in ("one_cycle", "reduce_on_plateau"),
        "any schedule.type but 'one_cycle' and 'reduce_on_plateau'",
        ("schedule.type",),
    ),
    "schedule.min_ratio": _schedule(
        "linear", "cosine", "warmup_stable_decay", "polynomial", "one_cycle", "reduce_on_plateau"
    ),
    "schedule.decay_steps": _schedule("warmup_stable_decay"),
    "schedule.power": _schedule("polynomial"),
    "schedule.gamma": _schedule("exponential", "step", "multi_step", "reduce_on_plateau"),
    "schedule.step_size": _schedule("step"),
    "schedule.milestones": _schedule("multi_step"),
    "schedule.peak_fraction": _schedule("one_cycle"),
    "schedule.start_ratio": _schedule("one_cycle"),
    "schedule.patience": _schedule("reduce_on_plateau"),
    "precision.dtype": None,
    "precision.accumulation_dtype": None,
    "precision.communication_dtype": None,
    "precision.tf32": Acts(
        lambda recipe: recipe.precision.dtype == "fp32", "precision.dtype 'fp32'", ("precision.dtype",)
    ),
    "precision.master_dtype": _BF16,
    "precision.state_dtype": Acts(
        lambda recipe: recipe.optimizer.type in ("adam", "adamw"),
        "optimizer.type 'adam' or 'adamw'",
        ("optimizer.type",),
    ),
    **dict.fromkeys(
        (f"precision.{name}" for name in ("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")),
        _FP16,
    ),
    **dict.fromkeys(f"parallel.{name}" for name in ("auto", "zero_stage", "pipeline", "tensor", "sequence")),
    "parallel.offload_optimizer": Acts(
        lambda recipe: recipe.parallel.zero_stage > 0, "parallel.zero_stage 1, 2 or 3", ("parallel.zero_stage",)
    ),
    "parallel.offload_ratio": Acts(
        lambda recipe: recipe.parallel.zero_stage == 3 and recipe.parallel.offload_optimizer == "cpu",
        "parallel.zero_stage 3 and parallel.offload_optimizer 'cpu'",
        ("parallel.zero_stage", "parallel.offload_optimizer"),
    ),
    "parallel.offload_param": _STAGE_3,
    "parallel.nvme_path": Acts(
        lambda recipe: "nvme" in (recipe.parallel.offload_optimizer, recipe.parallel.offload_param),
        "parallel.offload_optimizer or parallel.offload_param 'nvme'",
        ("parallel.offload_optimizer", "parallel.offload_param"),
    ),
    "parallel.reduce_bucket_size": _REDUCES,
    "parallel.overlap_comm": _REDUCES,
    "parallel.param_persistence_threshold": _STAGE_3,
    **dict.fromkeys(f"checkpoint.{name}" for name in ("every_steps", "keep", "export")),
    "checkpoint.keep_best": _HELD_OUT,
    "checkpoint.export_dtype": Acts(
        lambda recipe: recipe.checkpoint.export, "checkpoint.export True", ("checkpoint.export",)
    ),
    "checkpoint.merge": Acts(
        lambda recipe: recipe.checkpoint.export and recipe.tuning.name == "lora",
        "checkpoint.export True and tuning.name 'lora'",
        ("checkpoint.export", "tuning.name"),
    ),
    "evaluation.every_steps": _HELD_OUT,
    "evaluation.max_sequences": _HELD_OUT,
    "evaluation.early_stopping_patience": _HELD_OUT,
    "evaluation.metric": Acts(
        watches,
        "something that watches it: checkpoint.keep_best, evaluation.early_stopping_patience or "
        "schedule.type 'reduce_on_plateau'",
        ("checkpoint.keep_best", "evaluation.early_stopping_patience", "schedule.type"),
    ),
    "tracking.tensorboard": None,
    "tracking.trackers": None,
    "tracking.project": Acts(
        lambda recipe: bool(recipe.tracking.trackers), "tracking.trackers", ("tracking.trackers",)
    ),
    **dict.fromkeys(
        f"launch.{name}" for name in ("devices", "hosts", "device", "memory_check", "timeout_s", "host_timeout_s")
    ),
    **dict.fromkeys(("steps", "epochs", "seed", "note")),
}
"""Dotted name of every field -> when it acts; None: always, or what decides lies outside the recipe (a checkpoint's
architecture, a data file) and is looked at there. The sections `task` and `tuning` say it themselves (Choice.needs)."""


def acts_when(name: str, kind: type[BaseModel] | None) -> Acts | None:
    """What the field with the dotted `name`, of a section of class `kind`, needs to act; None: nothing."""
    if kind is None or not issubclass(kind, Choice):
        return FIELDS[name]
    section, _, field = name.partition(".")
    other = kind.needs.get(field)
    if other is None:
        return None
    return Acts(
        lambda recipe: bool(value_of(recipe, f"{section}.{other}")), f"{section}.{other}", (f"{section}.{other}",)
    )


def acting(recipe: Recipe) -> dict[str, Acts | None]:
    """Dotted name of every field of `recipe` -> what it needs to act."""
    found: dict[str, Acts | None] = {}
    for name in type(recipe).model_fields:
        value = getattr(recipe, name, None)
        if isinstance(value, BaseModel):
            found |= {
                f"{name}.{field}": acts_when(f"{name}.{field}", type(value)) for field in type(value).model_fields
            }
        else:
            found[name] = acts_when(name, None)
    return found


@dataclass(frozen=True)
class Idle:
    """A field that cannot act."""

    name: str
    depends: Sequence[str]
    """The fields that decide whether it acts."""
    flag: str
    """What takes it back to its default on the command line."""


class EffectError(RecipeError):
    """Some fields cannot act."""

    idle: Sequence[Idle] = ()


def check_effect(recipe: Recipe) -> None:
    """Raise RecipeError for fields that are not at their default and cannot act, all of them at once."""
    idle = {
        name: acts
        for name, acts in acting(recipe).items()
        if acts is not None and value_of(recipe, name) != default(recipe, name) and not acts.when(recipe)
    }
    if not idle:
        return
    fields = [Idle(name, acts.depends, _flag(name, default(recipe, name))) for name, acts in idle.items()]
    error = EffectError(
        "; ".join(_describe(recipe, name, acts) for name, acts in idle.items()),
        expected="; ".join(f"{name} acts with {acts.needs} only" for name, acts in idle.items()),
        do=f"remove {', '.join(idle)} from the recipe (on the command line: {' '.join(field.flag for field in fields)})",
    )
    error.idle = fields
    raise error


def default(recipe: Recipe, name: str) -> Any:
    """Default of the field with the dotted `name`."""
    section, _, last = name.rpartition(".")
    owner: BaseModel = getattr(recipe, section) if section else recipe
    return type(owner).model_fields[last].get_default(call_default_factory=True)


def value_of(recipe: Recipe, name: str) -> Any:
    """Value of the field with the dotted `name`."""
    section, _, last = name.rpartition(".")
    return getattr(getattr(recipe, section) if section else recipe, last)


def _describe(recipe: Recipe, name: str, acts: Acts) -> str:
    state = ", ".join(f"{other}={value_of(recipe, other)!r}" for other in acts.depends)
    return f"{name}={value_of(recipe, name)!r} has no effect with {state}"


def _flag(name: str, value: Any) -> str:
    return f"--{name}" if value == () else f"--{name} {value}"
