"""What the Hugging Face Trainer writes where a DeepSpeed JSON says "auto", and what it compares elsewhere.

Source: transformers/integrations/deepspeed.py, HfTrainerDeepSpeedConfig (fill_match); defaults of TrainingArguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.schema_arguments import READ
from toolkit.ds_config.schema_keys import is_number

TRAINER_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "warmup_steps": 0,
    "max_steps": -1,
    "bf16": False,
    "fp16": False,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
    "lr_scheduler_type": "linear",
    "auto_find_batch_size": False,
}
"""TrainingArguments' own defaults for what the rules read; tests compare them with the installed transformers."""

ACCELERATE_STAGE = 2
"""What accelerate's DeepSpeedPlugin makes of "zero_optimization.stage": "auto" unless its environment says otherwise."""

FILLED_FROM: dict[str, str] = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
}
"""DeepSpeed key -> the one argument that fills it and must equal it."""


def argument(arguments: Mapping[str, Any], name: str) -> Any:
    """The Trainer argument `name`, or TrainingArguments' default for it, also in the place of a value that it cannot have."""
    value = arguments.get(name)
    return TRAINER_DEFAULTS.get(name) if value is None or is_malformed(arguments, name) else value


def is_malformed(arguments: Mapping[str, Any], name: str) -> bool:
    """Whether the argument `name` has a value that it cannot have; a rule of its own names it, and nothing follows from it."""
    return name in READ and arguments.get(name) is not None and not READ[name].accepts(arguments[name])


def trainer_value(arguments: Mapping[str, Any], path: str) -> Any:
    """What the Trainer makes of the DeepSpeed key at `path`; None where it leaves it alone or depends on the run."""
    if path in FILLED_FROM:
        name = FILLED_FROM[path]
        return None if is_malformed(arguments, name) else argument(arguments, name)
    if path in ("bf16.enabled", "fp16.enabled"):
        name = path.removesuffix(".enabled")
        return any(argument(arguments, key) is True for key in (name, f"{name}_full_eval"))
    if path == "optimizer.params.betas":
        if is_malformed(arguments, "adam_beta1") or is_malformed(arguments, "adam_beta2"):
            return None
        return [argument(arguments, "adam_beta1"), argument(arguments, "adam_beta2")]
    if path == "scheduler.params.warmup_min_lr":
        return 0
    if path == "scheduler.params.total_num_steps":
        steps = argument(arguments, "max_steps")
        return steps if is_number(steps) and steps > 0 else None
    if path == "scheduler.params.warmup_num_steps":
        return warmup_steps(arguments)
    return None


def number_format(arguments: Mapping[str, Any]) -> str:
    """fp16, bf16 or fp32: the mixed precision that the arguments ask accelerate for."""
    if argument(arguments, "fp16") is True:
        return "fp16"
    return "bf16" if argument(arguments, "bf16") is True else "fp32"


def warmup_steps(arguments: Mapping[str, Any]) -> int | None:
    """Warm-up as the Trainer writes it, at least 1; None where it is a share of a length that is not known here."""
    steps = argument(arguments, "warmup_steps")
    if not is_number(steps) or 0 < steps < 1 or arguments.get("warmup_ratio"):
        return None
    return max(1, int(steps))
