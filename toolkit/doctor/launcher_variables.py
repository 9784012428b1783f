"""The variables of this shell that the `deepspeed` launcher leaves behind, and the file by which it takes them along.

Over ssh it forwards only what begins with PYTHON, MLFLOW, MV2 or UCX (with CUDA also NCCL), and what .deepspeed_env sets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

WHY = {
    "TOOLKIT_": "where fetched checkpoints and prepared data are kept",
    "HF_": "where hub files are kept, and whether the hub is asked",
    "TRANSFORMERS_": "a setting of transformers",
    "TOKENIZERS_": "threads of the tokenizer",
    "OMP_": "threads of each rank",
    "MKL_": "threads of each rank",
    "KMP_": "where threads are bound",
    "GLOO_": "network of CPU collectives",
    "NCCL_": "network of GPU collectives",
    "TORCH_": "a setting of torch, such as where compiled operators are kept",
    "PYTORCH_": "a setting of torch's allocator",
    "TRITON_": "where compiled GPU kernels are kept",
    "DS_ACCELERATOR": "the device DeepSpeed computes on",
    "CUDA_HOME": "the CUDA toolkit that kernels are built with",
    "CXX": "the compiler that kernels are built with",
    "WANDB_": "a setting of the tracker",
    "COMET_": "a setting of the tracker",
    "XDG_CACHE_HOME": "where programs keep their caches",
}
"""Names, or how names begin, that matter to a run, and what they do."""

NOTE = "TOOLKIT_FORWARDED"
"""Lists what we wrote. The launcher takes every line for a variable, so there is no place for a comment."""

_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD)S?($|_)")
# The launcher puts values between double quotes of a remote shell (multinode_runner.py, add_export), and pdsh replaces
# %h, %n and %u.
_UNSAFE = re.compile(r"[\"$`\\\n]|%[hnu]")
_SET_BY_LAUNCHERS = ("TORCHELASTIC_", "TORCH_CPP_LOG_LEVEL")


@dataclass(frozen=True)
class Forwarded:
    """What goes along with a launch, and what cannot."""

    lines: Mapping[str, str]
    """Name -> value for the file."""
    kept_back: Mapping[str, str] = field(default_factory=dict)
    """Name -> why it does not go into the file, and what to do instead."""


def why(name: str) -> str | None:
    """What the variable does to a run; None for those that do nothing to it."""
    if name == NOTE or name.startswith(_SET_BY_LAUNCHERS):
        return None
    return next((text for start, text in WHY.items() if name.startswith(start)), None)


def to_forward(environment: Mapping[str, str]) -> Forwarded:
    """The variables of `environment` that the other hosts must have, too."""
    lines, kept_back = {}, {}
    for name, value in sorted(environment.items()):
        if why(name) is None:
            continue
        if _SECRET.search(name):
            kept_back[name] = "a secret does not belong into a file of the project: log in on every host, or set it in ~/.profile there"  # fmt: skip
        elif _UNSAFE.search(value):
            kept_back[name] = "the launcher would garble its value: set it in ~/.profile on every host"
        else:
            lines[name] = value
    return Forwarded(lines, kept_back)


def file_name() -> str:
    """The name the launcher reads, in the home and in the current folder."""
    return os.environ.get("DS_ENV_FILE", ".deepspeed_env")


def read(file: Path) -> dict[str, str]:
    """The variables that `file` sets; empty where there is none. A line without "=" is left out."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name.strip(): value.strip() for name, equals, value in (line.partition("=") for line in lines) if equals}


def malformed(file: Path) -> list[int]:
    """Numbers of the lines that the launcher dies of: those without "=", empty ones and comments among them."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [number for number, line in enumerate(lines, 1) if "=" not in line or line.lstrip().startswith("#")]


def ours(file: Path) -> set[str]:
    """Names that an earlier `write` has put into `file`."""
    return set(filter(None, read(file).get(NOTE, "").split(",")))


def write(file: Path, lines: Mapping[str, str]) -> bool:
    """Make `file` set `lines`; whether it changed. What somebody else wrote stays, what an earlier call wrote goes.

    A variable that the file sets by somebody else's hand keeps that value.
    """
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    mine = ours(file) | {NOTE}
    kept = [line for line in before.splitlines() if line.partition("=")[0].strip() not in mine]
    theirs = {line.partition("=")[0].strip() for line in kept}
    new = {name: value for name, value in lines.items() if name not in theirs}
    block = [f"{NOTE}={','.join(new)}", *(f"{name}={value}" for name, value in new.items())] if new else []
    after = "".join(f"{line}\n" for line in [*kept, *block])
    if after == before:
        return False
    if after:
        file.write_text(after, encoding="utf-8")
    else:
        file.unlink()
    return True
