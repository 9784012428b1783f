"""What a launcher hands over besides the recipe, and whether it says the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hjson

from toolkit.errors import ConfigError

FILLED_IN = "auto"
"""Value by which Hugging Face configurations leave a key to the program."""


def check_launcher_config(config: Mapping[str, Any], given: Path | None) -> None:
    """Raise ConfigError naming every disagreement between `config`, rendered from the recipe, and the launcher.

    `given` is the file of --deepspeed_config (or --deepspeed); accelerate names its own in the environment.
    """
    for source, path in _files(given):
        handed = _read(path, source)
        found = list(disagreements(handed, config))
        if found:
            raise ConfigError(
                f"{source} {path} contradicts the recipe: " + "; ".join(found),
                expected="the values of the recipe, which is the one source of truth",
                do="drop the file (the recipe renders its own), or set the recipe's fields to these values",
            )
    _check_environment(config)


def _files(given: Path | None) -> Iterator[tuple[str, Path]]:
    if given is not None:
        yield "--deepspeed_config", given
    handed = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if handed and handed != "none" and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        yield "accelerate's deepspeed_config_file", Path(handed)


def _read(path: Path, source: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"{source} {path} does not exist", expected="a DeepSpeed JSON file", do="check the path, or leave it out"
        )
    try:
        handed = hjson.loads(path.read_text(encoding="utf-8"))
    except (hjson.HjsonDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{source} {path} is not JSON: {error}", expected="a DeepSpeed JSON file", do="correct the file"
        ) from None
    if not isinstance(handed, dict):
        raise ConfigError(f"{source} {path} holds no object", expected="a DeepSpeed JSON file", do="correct the file")
    return handed


def disagreements(handed: Mapping[str, Any], rendered: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """One sentence per key of `handed` whose value the recipe renders otherwise; "auto" agrees with everything."""
    for key, value in handed.items():
        name = f"{prefix}{key}"
        if value == FILLED_IN:
            continue
        ours = rendered.get(key)
        if isinstance(value, dict) and isinstance(ours, dict):
            yield from disagreements(value, ours, f"{name}.")
        elif key not in rendered and not value:
            continue  # a feature switched off on one side and absent on the other
        elif value != ours:
            yield f"{name} is {json.dumps(value)} there and {json.dumps(ours) if key in rendered else 'absent'} in the recipe"


ENVIRONMENT = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("zero_optimization", "stage"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps",),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping",),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("zero_optimization", "offload_optimizer", "device"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("zero_optimization", "offload_param", "device"),
}
"""What accelerate exports from its flags and YAML, and the key it speaks of."""

ACCELERATE_DEFAULTS = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
}
"""Values that accelerate exports though nobody chose them: they are no contradiction."""


def _check_environment(config: Mapping[str, Any]) -> None:
    found = []
    for variable, keys in ENVIRONMENT.items():
        value = os.environ.get(variable, "")
        if value in ("", "none", ACCELERATE_DEFAULTS[variable]):
            continue
        ours: Any = config
        for key in keys:
            ours = ours.get(key, {}) if isinstance(ours, Mapping) else {}
        if str(ours) != value and not _same_number(ours, value):
            found.append(f"{variable}={value}, the recipe has {'.'.join(keys)}={ours if ours != {} else 'none'}")
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    dtype = next((name for name in ("bf16", "fp16") if name in config), "fp32")
    if mixed not in ("no", "", dtype):
        found.append(f"ACCELERATE_MIXED_PRECISION={mixed}, the recipe has {dtype}")
    if found:
        raise ConfigError(
            "the launcher contradicts the recipe: " + "; ".join(found),
            expected="the recipe's values: it is the one source of truth",
            do="leave these flags out of `accelerate launch` and its YAML, or change the recipe's fields",
        )


def _same_number(ours: Any, text: str) -> bool:
    try:
        return float(ours) == float(text)
    except (TypeError, ValueError):
        return False
