"""What accelerate makes of its own file for DeepSpeed: the JSON that it names, or one from the keys of its block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.schema_accelerate import BLOCK, CLUSTER, OVERRULED
from toolkit.ds_config.schema_keys import Key

DEFAULT_STAGE = 2
"""DeepSpeedPlugin's, where zero_stage is not written."""


def block_of(accelerate: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section deepspeed_config, empty where it is absent or malformed."""
    block = accelerate.get("deepspeed_config")
    return block if isinstance(block, Mapping) else {}


def named_file(accelerate: Mapping[str, Any]) -> str | None:
    """The DeepSpeed JSON that the block names."""
    name = block_of(accelerate).get("deepspeed_config_file")
    return name if isinstance(name, str) and name != "none" else None


def is_deepspeeds(accelerate: Mapping[str, Any]) -> bool:
    """Whether `accelerate launch` starts DeepSpeed by this file."""
    return accelerate.get("distributed_type") == "DEEPSPEED"


def processes(accelerate: Mapping[str, Any]) -> int | None:
    """num_processes, of all machines together; None where it is left to the command line, or malformed."""
    number = sound(accelerate, "num_processes")
    return number if number and number > 0 else None


def sound(accelerate: Mapping[str, Any], name: str) -> Any:
    """The value of the key `name` of the file, or of its block; None where it is absent or of the wrong type."""
    known, held = (CLUSTER, accelerate) if name in CLUSTER.keys else (BLOCK, block_of(accelerate))
    key, value = known.keys[name], held.get(name)
    return value if isinstance(key, Key) and value is not None and key.accepts(value) else None


def mixed_precision(accelerate: Mapping[str, Any]) -> str:
    """no, fp16, bf16 or fp8."""
    return sound(accelerate, "mixed_precision") or ("fp16" if accelerate.get("fp16") is True else "no")


def made_from_block(accelerate: Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration that DeepSpeedPlugin.__post_init__ makes where no file is named.

    The number format of the Trainer's `arguments` goes before that of the file.
    """

    def offload(name: str) -> dict[str, Any]:
        device = sound(accelerate, f"offload_{name}_device") or "none"
        path = sound(accelerate, f"offload_{name}_nvme_path") if device == "nvme" else None
        return {"device": device, "nvme_path": path}

    stage = sound(accelerate, "zero_stage")
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": sound(accelerate, "gradient_accumulation_steps") or "auto",
        "zero_optimization": {
            "stage": DEFAULT_STAGE if stage is None else stage,
            "offload_optimizer": offload("optimizer"),
            "offload_param": offload("param"),
            "stage3_gather_16bit_weights_on_model_save": bool(sound(accelerate, "zero3_save_16bit_model")),
        },
    }
    clipping = sound(accelerate, "gradient_clipping")
    if clipping != 0:  # 0 is left out, and DeepSpeed clips at its default
        config["gradient_clipping"] = "auto" if clipping is None else clipping
    asked = [name for name in ("fp16", "bf16") if (arguments or {}).get(name) is True]
    precision = asked[0] if asked else mixed_precision(accelerate)
    if precision != "no":
        config["fp16" if precision == "fp16" else "bf16"] = {"enabled": True}
    return config


ORIGINS: dict[str, str] = {
    **{key: f"deepspeed_config.{name}" for name, key in OVERRULED.items()},
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "": "deepspeed_config",
}
"""Keys of that configuration -> where accelerate's file says it."""
