"""Rules about a DeepSpeed JSON against the Hugging Face Trainer's arguments (--training-args).

Source: transformers/integrations/deepspeed.py: what the Trainer fills in, compares and leaves unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.ds_config.edits import write
from toolkit.ds_config.findings import Severity
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.rules.trainer_values import FILLED_FROM, argument, trainer_value
from toolkit.ds_config.schema_keys import is_number
from toolkit.ds_config.schema_optimizers import CLASS_DEFAULTS
from toolkit.ds_config.schema_schedules import EQUIVALENTS
from toolkit.ds_config.values import exact, show

COMPARED = (
    *FILLED_FROM,
    "optimizer.params.betas",
    "scheduler.params.total_num_steps",
    "scheduler.params.warmup_num_steps",
    "bf16.enabled",
    "fp16.enabled",
)

ARGUMENT_NAMES = {
    "optimizer.params.betas": "adam_beta1, adam_beta2",
    "scheduler.params.total_num_steps": "max_steps",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "bf16.enabled": "bf16 or bf16_full_eval",
    "fp16.enabled": "fp16 or fp16_full_eval",
}

SAME_OPTIMIZER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_torch_xla",
            "adamw_torch_npu_fused",
            "adamw_hf",
            "adamw_apex_fused",
        ),
        ("adam", "adamw"),
    ),
    "adafactor": ("adafactor",),
    "sgd": ("sgd",),
    "adagrad": ("adagrad",),
    "rmsprop": ("rmsprop",),
    "lion_32bit": ("lion",),
}
"""optim -> DeepSpeed types that do the same. Those with 8-bit, 4-bit or low-rank states have none."""


def _is_default(arguments: Mapping[str, Any], names: str) -> bool:
    """Whether none of the arguments `names` is written, so that the user asked for nothing."""
    return all(arguments.get(name) is None for name in names.replace(" or ", ", ").split(", "))


def _origin(arguments: Mapping[str, Any], names: str) -> str:
    return " (TrainingArguments' default)" if _is_default(arguments, names) else ""


def _severity(arguments: Mapping[str, Any], names: str) -> Severity:
    """Of an argument that is ignored: it matters more where it was written."""
    return "warning" if _is_default(arguments, names) else "error"


@rule(
    "trainer-mismatch",
    looks_at=", ".join(COMPARED),
    why="the Trainer refuses numbers that differ from its own arguments, after the model was loaded (fill_match)",
)
def trainer_mismatch(context: Context) -> Iterator[Fault]:
    arguments = context.training_args
    if arguments is None:
        return
    for where in COMPARED:
        written, filled = context.raw(where), trainer_value(arguments, where)
        if written is None or written == "auto" or filled is None or written == filled:
            continue
        names = FILLED_FROM.get(where) or ARGUMENT_NAMES[where]
        what = f"{where}={show(written)} but {names} gives {show(filled)}{_origin(arguments, names)}"
        yield where, what, f'{show(filled)}, or "auto"', f'write "auto", or change {names}'


@rule(
    "trainer-bfloat16",
    looks_at="bfloat16.enabled, bf16",
    why='accelerate looks for "bf16" alone, finds none and adds its own, switched off unless the arguments ask for it; '
    "DeepSpeed reads that one (run: fp32 is trained)",
)
def trainer_bfloat16(context: Context) -> Iterator[Fault]:
    if context.training_args is not None and context.old_bf16 and context.dtype != "bf16":
        what = f"bfloat16.enabled=true with the Trainer: {context.dtype} is trained, since it looks for 'bf16' alone"
        yield "bfloat16.enabled", what, '"bf16": {"enabled": "auto"}, and bf16 among the arguments', "rename it 'bf16'"


@rule(
    "trainer-global-batch",
    looks_at="train_batch_size",
    why="the Trainer computes it as world size x per_device_train_batch_size x gradient_accumulation_steps and refuses others",
)
def trainer_global_batch(context: Context) -> Iterator[Fault]:
    arguments, written = context.training_args, context.number("train_batch_size")
    if arguments is None or context.target is None or written is None:
        return
    micro, steps = (
        argument(arguments, "per_device_train_batch_size"),
        argument(arguments, "gradient_accumulation_steps"),
    )
    if not isinstance(micro, int) or not isinstance(steps, int):
        return
    size = context.target.world_size * micro * steps
    if written != size:
        what = f"train_batch_size={exact(written)} but the Trainer computes {context.target.world_size} x {micro} x {steps} = {size}"
        yield "train_batch_size", what, f'{size}, or "auto"', 'write "auto"'


@rule(
    "trainer-accumulation-unwritten",
    looks_at="gradient_accumulation_steps, train_batch_size",
    why="where the key is absent accelerate writes 1 (DeepSpeedPlugin.__post_init__): beside a train_batch_size DeepSpeed stops "
    "with an AssertionError, without one it trains the same and counts its steps wrongly (run)",
    severity="warning",
)
def trainer_accumulation_unwritten(context: Context) -> Iterator[Fault]:
    where, arguments = "gradient_accumulation_steps", context.training_args
    steps = None if arguments is None else argument(arguments, where)
    if context.has(where) or not is_number(steps) or steps is None or steps <= 1:
        return
    what = f"{where} is missing while the Trainer accumulates {exact(steps)} micro-batches: accelerate writes 1"
    severity: Severity = "warning"
    if context.has("train_batch_size"):
        what, severity = f"{what}, which contradicts train_batch_size", "error"
    yield where, what, f'"auto", or {exact(steps)}', f'write "{where}": "auto"', severity, write(where, "auto")


@rule(
    "trainer-optimizer-values",
    looks_at="optimizer.params.{lr, betas, eps, weight_decay}, learning_rate, adam_beta1, adam_beta2, adam_epsilon, weight_decay",
    why="the Trainer fills in only keys that are written: an optimizer section without them takes its class's own values, "
    "whatever the arguments say (fill_match)",
)
def trainer_optimizer_values(context: Context) -> Iterator[Fault]:
    arguments, defaults = context.training_args, CLASS_DEFAULTS.get(context.optimizer_class or "")
    if arguments is None or defaults is None:
        return
    for name, taken in defaults.items():
        where = f"optimizer.params.{name}"
        wanted = trainer_value(arguments, where)
        if context.has(where) or wanted is None or wanted == taken:
            continue
        names = FILLED_FROM.get(where) or ARGUMENT_NAMES[where]
        what = f"{where} is missing: {show(taken)} is used, not {names}={show(wanted)}{_origin(arguments, names)}"
        graver = _severity(arguments, names)
        fix = (write(where, "auto"),) if graver == "error" and context.has("optimizer.params") else ()
        yield where, what, '"auto", or the value', f'write "{name}": "auto"', graver, *fix


@rule(
    "trainer-schedule-shadowed",
    looks_at="scheduler.type, lr_scheduler_type, lr_scheduler_kwargs",
    why="a scheduler section wins, and lr_scheduler_type and lr_scheduler_kwargs are ignored in silence",
)
def trainer_schedule_shadowed(context: Context) -> Iterator[Fault]:
    arguments, kind = context.training_args, context.text("scheduler.type")
    if arguments is None or kind is None:
        return
    wanted = argument(arguments, "lr_scheduler_type")
    if EQUIVALENTS.get(str(wanted)) != kind:
        what = f"scheduler.type={kind!r} replaces lr_scheduler_type={wanted!r}{_origin(arguments, 'lr_scheduler_type')}"
        expected = EQUIVALENTS.get(str(wanted), "no scheduler section")
        yield "scheduler.type", what, expected, "remove 'scheduler'", _severity(arguments, "lr_scheduler_type")
    if arguments.get("lr_scheduler_kwargs"):
        what = f"lr_scheduler_kwargs={show(arguments['lr_scheduler_kwargs'])} is ignored beside a scheduler section"
        yield "scheduler", what, "no lr_scheduler_kwargs, or no scheduler section", "remove 'scheduler'"


@rule(
    "trainer-no-warmup",
    looks_at="scheduler.params.warmup_num_steps, warmup_steps",
    why='for warmup_steps=0 "auto" becomes 1, and DeepSpeed\'s schedules then run the first two steps at the minimum (run)',
    severity="warning",
)
def trainer_no_warmup(context: Context) -> Iterator[Fault]:
    where, arguments = "scheduler.params.warmup_num_steps", context.training_args
    if arguments is None or context.raw(where) != "auto" or arguments.get("warmup_ratio"):
        return
    if argument(arguments, "warmup_steps") == 0:
        what = f'{where}="auto" with warmup_steps=0: the first two optimizer steps run at warmup_min_lr'
        yield where, what, "a warm-up, or no scheduler section", "remove 'scheduler', or set warmup_steps"


@rule(
    "trainer-optimizer-shadowed",
    looks_at="optimizer.type, optim",
    why="an optimizer section wins over --optim in silence",
)
def trainer_optimizer_shadowed(context: Context) -> Iterator[Fault]:
    arguments, kind = context.training_args, context.optimizer
    wanted = None if arguments is None else arguments.get("optim")
    if kind is None or not isinstance(wanted, str):
        return
    if kind.lower() not in SAME_OPTIMIZER.get(wanted, ()):
        what = f"optimizer.type={kind!r} replaces optim={wanted!r}"
        yield (
            "optimizer.type",
            what,
            "the same optimizer twice, or no optimizer section",
            "remove 'optimizer', or change optim",
        )


@rule(
    "trainer-saves-no-weights",
    looks_at="zero_optimization.stage3_gather_16bit_weights_on_model_save",
    why="at stage 3 and with tensor parallelism save_model only warns and leaves no Hugging Face weights without it (run)",
    severity="warning",
)
def trainer_saves_no_weights(context: Context) -> Iterator[Fault]:
    where = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    gathers = context.flag(where) or context.flag("zero_optimization.gather_16bit_weights_on_model_save")
    tensor = context.number("tensor_parallel.autotp_size", 0) or 0
    if context.for_hugging_face and not gathers and (context.stage == 3 or tensor > 1):
        written = f"{where}={show(context.raw(where))}" if context.has(where) else f"{where} is missing"
        yield where, f"{written}: save_model writes no safetensors", "true", f'write "{where.rpartition(".")[2]}": true'


@rule(
    "trainer-batch-finder",
    looks_at="auto_find_batch_size, zero_optimization.stage",
    why="the Trainer refuses auto_find_batch_size with stage 3",
)
def trainer_batch_finder(context: Context) -> Iterator[Fault]:
    arguments = context.training_args
    if arguments is not None and arguments.get("auto_find_batch_size") is True and context.stage == 3:
        what = "zero_optimization.stage=3 with auto_find_batch_size=true"
        yield "zero_optimization.stage", what, "a fixed batch size", "set auto_find_batch_size to false"


@rule(
    "trainer-tensor-parallel-stage-3",
    looks_at="tensor_parallel.autotp_size, zero_optimization.stage",
    why="from_pretrained under stage 3 with tensor parallelism raises NotImplementedError for every model (run)",
)
def trainer_tensor_parallel_stage_3(context: Context) -> Iterator[Fault]:
    where, degree = "tensor_parallel.autotp_size", context.number("tensor_parallel.autotp_size", 0) or 0
    if context.training_args is not None and degree > 1 and context.stage == 3:
        yield where, f"{where}={exact(degree)} at stage 3 with the Trainer", "stage 0, 1 or 2", "use stage 2"


TRAINER_RULES = (
    trainer_mismatch,
    trainer_bfloat16,
    trainer_global_batch,
    trainer_accumulation_unwritten,
    trainer_optimizer_values,
    trainer_schedule_shadowed,
    trainer_no_warmup,
    trainer_optimizer_shadowed,
    trainer_saves_no_weights,
    trainer_batch_finder,
    trainer_tensor_parallel_stage_3,
)
